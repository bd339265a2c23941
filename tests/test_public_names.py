"""The public library is this list. A change here is a change of the API."""

import subprocess
import sys

import provenance

PUBLIC = [
    "CheckSettings",
    "Detection",
    "Index",
    "Key",
    "Keyring",
    "LogWriter",
    "Observations",
    "ProvenanceError",
    "Schedule",
    "SchemeSpecification",
    "UnlockedKeyring",
    "Verdict",
    "Watermark",
    "add_value",
    "build_index",
    "check_outputs",
    "create_keyring",
    "detect_mark",
    "detect_pooled",
    "load_tokenizer",
    "make_scheme",
    "observe",
    "read_foreign_mark",
]


def test_public_names_are_exactly_these_and_all_import_and_have_docstrings():
    assert sorted(provenance.__all__) == PUBLIC == sorted(dir(provenance))
    for name in PUBLIC:
        assert getattr(provenance, name).__doc__


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, provenance\n"
        "print([m for m in ('numpy', 'torch', 'transformers', 'numba', 'duckdb') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_public_name_is_shadowed_by_a_module():
    """`import provenance.x` sets the attribute x of the package: a public name must differ."""
    from pathlib import Path

    modules = {path.stem for path in Path(provenance.__file__).parent.iterdir()}
    assert not modules & set(PUBLIC)
