"""What the tests of vLLM's processors share: the classes, real or fake, a keyring, parameters."""

import importlib
import sys
import warnings
from importlib.util import find_spec

import pytest

from provenance.embed.vllm.requests import KEYRING_VARIABLE
from tests.conftest import make_keyring

REAL = find_spec("vllm") is not None
WEEKS = ["a", "b"]
SHARES = {"global": 0.3, "week": 0.5}
LONGEST = 4096
ADAPTERS = ("provenance.embed.vllm.v1", "provenance.embed.vllm.v2")


@pytest.fixture(scope="module")
def vllm():
    """Namespace of vLLM's classes by module, real or fake; the adapters import them."""
    from tests.embed import vllm_fake as fake

    names = [] if REAL else fake.install()
    with warnings.catch_warnings():  # vLLM's own imports warn
        warnings.simplefilter("ignore")
        modules = {path: importlib.import_module(path) for path in fake.CONTENTS}
        for name in ADAPTERS:
            importlib.import_module(name)
    yield modules
    for name in [*names, *(ADAPTERS if names else ())]:
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path, tokenizer_path, monkeypatch):
    folder = tmp_path / "ring"
    make_keyring(folder, tokenizer_path, shares=SHARES, values={"week": WEEKS})
    monkeypatch.setenv(KEYRING_VARIABLE, str(folder))
    return folder
