"""Verify a bundle: repeat every step from its files, and say of each whether it held.

What cannot be recomputed from a bundle, ever: the weights and which pairs there are (they need the
suspect's outputs and the index, whose hashes are in the verdict), and the controls on innocent
models (they need those models' outputs). What cannot be recomputed unless keys are disclosed: the
coins behind the scores, the slots, and the controls under true keys. Such steps are "not possible"
and claim nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from provenance.check.pairs import DamagedPairsError
from provenance.check.reading import VERDICT_FILE
from provenance.errors import ProvenanceError, StorageError, say_briefly
from provenance.evidence.bundle import (
    DISCLOSED_FOLDER,
    PAIRS_FOLDER,
    PLAN_FILE,
    REPORT_FILE,
    RESPONSE_FILE,
)
from provenance.evidence.manifest import MANIFEST_FILE, SIGNATURE_FILE
from provenance.evidence.register import REGISTER_FILE
from provenance.evidence.steps import NotPossibleError, Step, StepFailedError, Verification
from provenance.evidence.verify import custody, recomputed, registered
from provenance.evidence.verify.state import State, Trust
from provenance.keys.keyring import KEYRING_FILE
from provenance.storage.documents import MALFORMED
from provenance.storage.files import is_of_disk

_STEPS: Final[tuple[tuple[str, str, Callable[[State], str]], ...]] = (
    ("the files are those of the manifest, unchanged", MANIFEST_FILE, custody.check_manifest),
    ("the manifest is signed", SIGNATURE_FILE, custody.check_signature),
    ("verdict and keyring have the known form", VERDICT_FILE, custody.check_form),
    ("the plan is the committed one", PLAN_FILE, custody.check_plan),
    ("an authority saw the plan before the check", RESPONSE_FILE, custody.check_timestamp),
    ("the plan was followed", PLAN_FILE, custody.check_followed),
    ("keyring, scheme and commitments agree", KEYRING_FILE, recomputed.check_keyring),
    ("disclosed keys open their commitments", DISCLOSED_FOLDER, recomputed.check_disclosed),
    ("pairs are distinct and sorted", PAIRS_FOLDER, recomputed.check_pairs),
    ("contexts lie in the slots of their keys", PAIRS_FOLDER, recomputed.check_slots),
    ("scores are those of the disclosed keys' coins", PAIRS_FOLDER, recomputed.check_scores),
    ("pairs add up to the class tables", PAIRS_FOLDER, recomputed.check_tables),
    ("p-values follow from the class tables", VERDICT_FILE, recomputed.check_tails),
    ("controls are complete and can be repeated", VERDICT_FILE, recomputed.check_controls),
    ("the verdict says what its numbers say", VERDICT_FILE, recomputed.check_verdict),
    ("the report is made from the verdict", REPORT_FILE, recomputed.check_report),
    ("versions are stated", VERDICT_FILE, custody.check_versions),
    ("the register counts this check", REGISTER_FILE, registered.check_register),
)


def verify_bundle(folder: Path, trust: Trust) -> Verification:
    """Every step on a bundle, in order; a step whose ground is missing is "not possible".

    Parameters: the bundle; what the verifier knows from elsewhere. Raises StorageError if there is
    no such folder; never for what is in it.

    Notes
    -----
    Cost: the placebo keys again (about 2 s for 400 keys on 100 k pairs) and one tail a key.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder}: must be a folder; it is not. Name a bundle.")
    state = State(folder, trust)
    return Verification(
        tuple(
            _run(number, title, file, check, state)
            for number, (title, file, check) in enumerate(_STEPS, start=1)
        )
    )


def _run(number: int, title: str, file: str, check: Callable[[State], str], state: State) -> Step:
    try:
        return Step(number, title, "held", file, check(state))
    except Exception as error:
        if is_of_disk(error):  # no step has failed: the bundle was not read
            raise StorageError(
                f"{state.folder}: must be readable; got: {say_briefly(error)}. Copy the bundle "
                "again."
            ) from error
        return _judge(Step(number, title, "failed", file, ""), error, state)


def _judge(step: Step, error: Exception, state: State) -> Step:
    """What became of a step that ended with an error."""
    match error:
        case NotPossibleError():
            return replace(step, status="not possible", detail=str(error))
        case StepFailedError() | DamagedPairsError():
            return replace(step, file=error.file, detail=str(error))
        case ProvenanceError():
            return replace(step, detail=str(error))
        case OSError():
            raise StorageError(
                f"{error.filename or state.folder}: must be readable; got: {error.strerror}. "
                "Copy the bundle again."
            ) from error
    if isinstance(error, MALFORMED):  # a verdict's inputs: their shape depends on what was read
        return replace(step, detail=f"malformed: {type(error).__name__}: {error}")
    raise error
