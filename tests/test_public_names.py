"""The public library is this list. A change here is a change of the API."""

import provenance

PUBLIC = [
    "Case",
    "CaseFolder",
    "CheckSettings",
    "ChosenPrompts",
    "CollectSettings",
    "Collection",
    "DEFAULT_SHARES",
    "Decision",
    "DetectablePower",
    "DetectedTexts",
    "Detection",
    "Filing",
    "GeneratedLog",
    "Index",
    "Installation",
    "Key",
    "KeyName",
    "Keyring",
    "LabelPolicy",
    "LogAudit",
    "LogWriter",
    "Look",
    "MarkChoice",
    "Observations",
    "Page",
    "Plan",
    "PlannedPower",
    "ProvenanceError",
    "ReadOutputs",
    "Schedule",
    "SchemeSpecification",
    "UnlockedKeyring",
    "Verdict",
    "Verification",
    "VerificationError",
    "Watermark",
    "WorkerKeys",
    "__version__",
    "add_value",
    "audit_log",
    "build_group",
    "build_index",
    "check_outputs",
    "choose_prompts",
    "collect_outputs",
    "commit_plan",
    "create_keyring",
    "create_signing_key",
    "describe_index",
    "detect",
    "detect_mark",
    "detect_pooled",
    "detect_texts",
    "disclose",
    "disclose_key",
    "export_worker",
    "file_bundle",
    "generate_log",
    "generate_unmarked",
    "import_batch",
    "inspect_installation",
    "judge_suspects",
    "list_groups",
    "list_warnings",
    "load_tokenizer",
    "make_keyring",
    "make_plan",
    "make_scheme",
    "match_index",
    "merge_indexes",
    "new_case",
    "observe",
    "open_case",
    "open_keyring",
    "plan_power",
    "prepare_batch",
    "read_case",
    "read_defaults",
    "read_foreign_mark",
    "read_outputs",
    "read_suspect",
    "save_suspects_page",
    "sign_bundle",
    "state_detectable",
    "tell_story",
    "transformers",
    "verify",
    "verify_collection",
]

BESIDE_TORCH = {"GeneratedLog", "generate_log", "transformers"}


def test_public_names_are_exactly_these_and_all_import_and_have_docstrings():
    assert sorted(provenance.__all__) == PUBLIC == sorted(dir(provenance))
    for name in set(PUBLIC) - BESIDE_TORCH:
        assert getattr(provenance, name).__doc__


def test_no_public_name_is_shadowed_by_a_module():
    """`import provenance.x` sets the attribute x of the package: a public name must differ."""
    from pathlib import Path

    modules = {path.stem for path in Path(provenance.__file__).parent.iterdir()}
    assert not modules & set(PUBLIC)
