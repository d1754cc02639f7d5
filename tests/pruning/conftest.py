"""Which of the contract's tests are slow: an unfinished model takes seconds to compile, so one example a method."""

import pytest

from pruning.methods import method


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        is_compiled = "unfinished_model_compiles" in item.name and "options" in given
        if is_compiled and given["options"] != method(given["name"]).EXAMPLES[0]:
            item.add_marker("slow")
