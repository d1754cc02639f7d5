"""Every simulated machine keeps the contract; a new YAML is picked up without an edit here.

Measured ones obey fewer laws (`accel_models.measured` says which): tests/codesign/compiler/test_host.py.
"""

from __future__ import annotations

import pytest

from accel_models import Target, target, targets
from accel_models.testing import TargetContract


@pytest.fixture(scope="module", params=targets())
def machine(request: pytest.FixtureRequest) -> Target:
    return target(request.param)


class TestEveryTarget(TargetContract):
    pass
