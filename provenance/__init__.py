"""Test whether a model was trained on your model's watermarked responses.

The names below are the public library; everything else may change. They are imported when they are
first used, so that `import provenance` costs nothing. `docs/architecture.md` is the map.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provenance.case.case import Case as Case
    from provenance.case.case import open_case as open_case
    from provenance.case.choosing import ChosenPrompts as ChosenPrompts
    from provenance.case.choosing import choose_prompts as choose_prompts
    from provenance.case.defaults import read_defaults as read_defaults
    from provenance.case.doors import open_keyring as open_keyring
    from provenance.case.folder import CaseFolder as CaseFolder
    from provenance.case.folder import new_case as new_case
    from provenance.case.folder import read_case as read_case
    from provenance.case.indexing import audit_log as audit_log
    from provenance.case.indexing import build_group as build_group
    from provenance.case.indexing import build_index as build_index
    from provenance.case.indexing import describe_index as describe_index
    from provenance.case.indexing import list_groups as list_groups
    from provenance.case.indexing import list_warnings as list_warnings
    from provenance.case.indexing import merge_indexes as merge_indexes
    from provenance.case.installation import Installation as Installation
    from provenance.case.installation import inspect_installation as inspect_installation
    from provenance.case.keyrings import disclose_key as disclose_key
    from provenance.case.keyrings import make_keyring as make_keyring
    from provenance.case.looks import Look as Look
    from provenance.case.marks import MarkChoice as MarkChoice
    from provenance.case.matching import match_index as match_index
    from provenance.case.outputs import ReadOutputs as ReadOutputs
    from provenance.case.outputs import read_outputs as read_outputs
    from provenance.case.planning import commit_plan as commit_plan
    from provenance.case.planning import make_plan as make_plan
    from provenance.case.proof import verify as verify
    from provenance.case.story import tell_story as tell_story
    from provenance.case.texts import DetectedTexts as DetectedTexts
    from provenance.case.texts import detect as detect
    from provenance.case.texts import detect_texts as detect_texts
    from provenance.check.examine import CheckSettings as CheckSettings
    from provenance.check.examine import check_outputs as check_outputs
    from provenance.check.filing import Filing as Filing
    from provenance.check.plan import Plan as Plan
    from provenance.check.planned_power import DetectablePower as DetectablePower
    from provenance.check.planned_power import PlannedPower as PlannedPower
    from provenance.check.planned_power import plan_power as plan_power
    from provenance.check.planned_power import state_detectable as state_detectable
    from provenance.check.suspects import judge_suspects as judge_suspects
    from provenance.check.suspects import read_suspect as read_suspect
    from provenance.check.verdict import Verdict as Verdict
    from provenance.embed import transformers as transformers
    from provenance.embed.generation import GeneratedLog as GeneratedLog
    from provenance.embed.generation import generate_log as generate_log
    from provenance.embed.generation import generate_unmarked as generate_unmarked
    from provenance.embed.policy import Decision as Decision
    from provenance.embed.policy import LabelPolicy as LabelPolicy
    from provenance.embed.watermark import Watermark as Watermark
    from provenance.errors import ProvenanceError as ProvenanceError
    from provenance.errors import VerificationError as VerificationError
    from provenance.evidence.bundle import file_bundle as file_bundle
    from provenance.evidence.report.several import save_suspects_page as save_suspects_page
    from provenance.evidence.signature import create_signing_key as create_signing_key
    from provenance.evidence.signature import sign_bundle as sign_bundle
    from provenance.evidence.steps import Verification as Verification
    from provenance.keys.keyring import Key as Key
    from provenance.keys.keyring import Keyring as Keyring
    from provenance.keys.keyring import SchemeSpecification as SchemeSpecification
    from provenance.keys.keyring import UnlockedKeyring as UnlockedKeyring
    from provenance.keys.keyring import add_value as add_value
    from provenance.keys.keyring import create_keyring as create_keyring
    from provenance.keys.keyring import disclose as disclose
    from provenance.keys.schedule import DEFAULT_SHARES as DEFAULT_SHARES
    from provenance.keys.schedule import KeyName as KeyName
    from provenance.keys.schedule import Schedule as Schedule
    from provenance.keys.tokenizer import load_tokenizer as load_tokenizer
    from provenance.keys.worker import WorkerKeys as WorkerKeys
    from provenance.keys.worker import export_worker as export_worker
    from provenance.marks.detection import Detection as Detection
    from provenance.marks.detection import detect_mark as detect_mark
    from provenance.marks.detection import detect_pooled as detect_pooled
    from provenance.marks.foreign.reading import read_foreign_mark as read_foreign_mark
    from provenance.marks.own import make_scheme as make_scheme
    from provenance.served.audit_result import LogAudit as LogAudit
    from provenance.served.index import Index as Index
    from provenance.served.writer import LogWriter as LogWriter
    from provenance.storage.printable import Page as Page
    from provenance.suspect.access.outputs import observe as observe
    from provenance.suspect.collect.batches import import_batch as import_batch
    from provenance.suspect.collect.batches import prepare_batch as prepare_batch
    from provenance.suspect.collect.collect import collect_outputs as collect_outputs
    from provenance.suspect.collect.collect import verify_collection as verify_collection
    from provenance.suspect.collect.result import Collection as Collection
    from provenance.suspect.collect.settings import CollectSettings as CollectSettings
    from provenance.suspect.observations import Observations as Observations

    __version__: str

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "DEFAULT_SHARES": "provenance.keys.schedule",
    "Case": "provenance.case.case",
    "CaseFolder": "provenance.case.folder",
    "CheckSettings": "provenance.check.examine",
    "ChosenPrompts": "provenance.case.choosing",
    "CollectSettings": "provenance.suspect.collect.settings",
    "Collection": "provenance.suspect.collect.result",
    "Decision": "provenance.embed.policy",
    "DetectedTexts": "provenance.case.texts",
    "DetectablePower": "provenance.check.planned_power",
    "Detection": "provenance.marks.detection",
    "Filing": "provenance.check.filing",
    "GeneratedLog": "provenance.embed.generation",
    "Index": "provenance.served.index",
    "Installation": "provenance.case.installation",
    "Key": "provenance.keys.keyring",
    "KeyName": "provenance.keys.schedule",
    "Keyring": "provenance.keys.keyring",
    "LabelPolicy": "provenance.embed.policy",
    "LogAudit": "provenance.served.audit_result",
    "LogWriter": "provenance.served.writer",
    "Look": "provenance.case.looks",
    "MarkChoice": "provenance.case.marks",
    "Observations": "provenance.suspect.observations",
    "Page": "provenance.storage.printable",
    "Plan": "provenance.check.plan",
    "PlannedPower": "provenance.check.planned_power",
    "ProvenanceError": "provenance.errors",
    "ReadOutputs": "provenance.case.outputs",
    "Schedule": "provenance.keys.schedule",
    "SchemeSpecification": "provenance.keys.keyring",
    "UnlockedKeyring": "provenance.keys.keyring",
    "Verdict": "provenance.check.verdict",
    "Verification": "provenance.evidence.steps",
    "VerificationError": "provenance.errors",
    "Watermark": "provenance.embed.watermark",
    "WorkerKeys": "provenance.keys.worker",
    "add_value": "provenance.keys.keyring",
    "audit_log": "provenance.case.indexing",
    "build_group": "provenance.case.indexing",
    "build_index": "provenance.case.indexing",
    "check_outputs": "provenance.check.examine",
    "choose_prompts": "provenance.case.choosing",
    "collect_outputs": "provenance.suspect.collect.collect",
    "commit_plan": "provenance.case.planning",
    "create_keyring": "provenance.keys.keyring",
    "create_signing_key": "provenance.evidence.signature",
    "describe_index": "provenance.case.indexing",
    "detect": "provenance.case.texts",
    "detect_mark": "provenance.marks.detection",
    "detect_pooled": "provenance.marks.detection",
    "detect_texts": "provenance.case.texts",
    "disclose": "provenance.keys.keyring",
    "disclose_key": "provenance.case.keyrings",
    "export_worker": "provenance.keys.worker",
    "file_bundle": "provenance.evidence.bundle",
    "generate_log": "provenance.embed.generation",
    "generate_unmarked": "provenance.embed.generation",
    "import_batch": "provenance.suspect.collect.batches",
    "inspect_installation": "provenance.case.installation",
    "judge_suspects": "provenance.check.suspects",
    "list_groups": "provenance.case.indexing",
    "list_warnings": "provenance.case.indexing",
    "match_index": "provenance.case.matching",
    "merge_indexes": "provenance.case.indexing",
    "load_tokenizer": "provenance.keys.tokenizer",
    "make_keyring": "provenance.case.keyrings",
    "make_plan": "provenance.case.planning",
    "make_scheme": "provenance.marks.own",
    "new_case": "provenance.case.folder",
    "observe": "provenance.suspect.access.outputs",
    "open_case": "provenance.case.case",
    "open_keyring": "provenance.case.doors",
    "plan_power": "provenance.check.planned_power",
    "prepare_batch": "provenance.suspect.collect.batches",
    "read_case": "provenance.case.folder",
    "read_defaults": "provenance.case.defaults",
    "read_foreign_mark": "provenance.marks.foreign.reading",
    "read_outputs": "provenance.case.outputs",
    "read_suspect": "provenance.check.suspects",
    "save_suspects_page": "provenance.evidence.report.several",
    "sign_bundle": "provenance.evidence.signature",
    "state_detectable": "provenance.check.planned_power",
    "tell_story": "provenance.case.story",
    "verify": "provenance.case.proof",
    "verify_collection": "provenance.suspect.collect.collect",
}
_MODULES = {"transformers": "provenance.embed.transformers"}

__all__ = ["__version__", *_HOMES, *_MODULES]


if not TYPE_CHECKING:  # a type checker would believe that every name is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            from provenance.errors import DISTRIBUTION

            return version(DISTRIBUTION)
        if name in _MODULES:
            return import_module(_MODULES[name])
        if name not in _HOMES:
            raise AttributeError(f"module 'provenance' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
