"""What these tests are about needs a processor that code is made for."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _on_such_a_processor(native: None) -> None:
    """Before any other fixture compiles something."""
