"""Every registered machine keeps the contract; a new YAML is picked up without an edit here."""

from __future__ import annotations

import pytest

from accel_models import Target, target, targets
from accel_models.testing import TargetContract


@pytest.fixture(scope="module", params=targets())
def machine(request: pytest.FixtureRequest) -> Target:
    return target(request.param)


class TestEveryTarget(TargetContract):
    pass
