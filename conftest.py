"""What holds for every test and doctest of the repository.

Keys, salts and nonces that the program draws inside a test or a fixture are a function of the
test's or fixture's name. Otherwise every control of level 1e-3 and every bound on a p-value would
fail once in so many runs of the suite. That errors stay inside their limits over random keys is
what `benchmarks/calibration` and the tests of rates show.
"""

import zlib
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any

import pytest

# Modules that only import beside an optional stack are not collected where it is missing.
_BESIDE = {
    "vllm": ("embed/vllm/v1", "embed/vllm/v2"),
    "triton": ("embed/device/triton_coins",),
    "pyspark": ("served/spark",),
}
collect_ignore = [
    f"provenance/{name}.py"
    for stack, names in _BESIDE.items()
    if not find_spec(stack)
    for name in names
]


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Draw the secrets of a fixture from its name and parameter."""
    from tests.world.synthetic import seeded_secrets

    number = getattr(request, "param_index", 0)
    with seeded_secrets(zlib.crc32(f"{fixturedef.baseid} {fixturedef.argname} {number}".encode())):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Draw the secrets of a test from its name."""
    from tests.world.synthetic import seeded_secrets

    with seeded_secrets(zlib.crc32(item.nodeid.encode())):
        return (yield)
