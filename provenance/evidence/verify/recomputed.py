"""Steps on what a bundle says: keys, pairs, scores, tables, tails, controls and the verdict.

Each returns what it found in words, or raises StepFailedError or NotPossibleError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from provenance.check.examine import say_caveat, try_family
from provenance.check.findings import GroupResult, HypothesisResult, join_family
from provenance.check.pairs import CSV, PARQUET, read_pairs, read_shared_pairs
from provenance.check.reading import VERDICT_FILE
from provenance.check.score import Weighing, WeightedPairs, open_coins
from provenance.check.words import name_standing
from provenance.coins.contexts import name_contexts
from provenance.errors import say_briefly
from provenance.evidence.bundle import (
    CONTROL_PAIRS,
    DISCLOSED_FOLDER,
    PAIRS_FOLDER,
    REPORT_FILE,
    TRAJECTORY_FILE,
    make_report,
    name_pairs,
    name_pooled,
    pooled_slots,
)
from provenance.evidence.manifest import describe_environment
from provenance.evidence.older import split_stated_alpha
from provenance.evidence.steps import NotPossibleError, StepFailedError
from provenance.evidence.verify.foreign_key import (
    add_up,
    check_description,
    check_one_slot,
    read_foreign,
)
from provenance.evidence.verify.grouped import (
    check_group_scores,
    check_group_tables,
    check_stated_groups,
    name_all_pairs,
    read_group_pairs,
)
from provenance.evidence.verify.rebuild import (
    ControlRecord,
    compare,
    rebuild_controls,
    rebuild_verdict,
)
from provenance.evidence.verify.state import State
from provenance.keys.keyring import KEYRING_FILE, Key
from provenance.keys.schedule import CONTROL, GLOBAL, SELECTOR, SELECTOR_KEY, KeyName
from provenance.marks.foreign.mark import is_foreign
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable
from provenance.storage.documents import MALFORMED
from provenance.storage.files import read_bytes, read_json

_DISCLOSED_FIELDS: Final = frozenset(
    {
        "format",
        "keyring_id",
        "scheme",
        "context_width",
        "slot",
        "value",
        "key",
        "salt",
        "commitment",
    }
)


def check_keyring(state: State) -> str:
    """The verdict is about this keyring, its scheme and its committed keys."""
    public, verdict = state.public, state.stated
    expected = {
        "keyring_id": public.id,
        "scheme": public.scheme.to_json(),
        "commitments": {str(key): c.sha256 for key, c in public.commitments.items()},
    }
    stated = {name: getattr(verdict, name) for name in expected}
    if difference := compare(stated, expected):
        raise StepFailedError(KEYRING_FILE, difference)
    for key in state.tables:
        if key not in public.commitments or key.slot in (CONTROL, SELECTOR):
            raise StepFailedError(KEYRING_FILE, f"has no key for {key}")
    if verdict.inputs["tokenizer_sha256"] != public.tokenizer_sha256:
        raise StepFailedError(KEYRING_FILE, "inputs.tokenizer_sha256: another tokenizer")
    if is_foreign(public):
        return check_description(public)
    return f"{public.id}, {len(public.commitments)} keys committed"


def check_disclosed(state: State) -> str:
    """Every disclosed key opens the commitment that the keyring made to it."""
    public = state.public
    names = sorted(n for n in state.whole.names if n.startswith(f"{DISCLOSED_FOLDER}/"))
    if not names:
        raise NotPossibleError("no key is disclosed")
    if is_foreign(public):
        state.foreign = read_foreign(state.folder, names, public)
        return f"{public.scheme.name}, by scrypt of its key"
    keys: dict[KeyName, Key] = {}
    for name in names:
        shown = read_json(state.folder / name)
        if not isinstance(shown, dict) or set(shown) != _DISCLOSED_FIELDS:
            raise StepFailedError(name, "must have the fields of a disclosed key and no others")
        opened = KeyName(shown["slot"], shown["value"])
        commitment = public.commitments.get(opened)
        if commitment is None or opened in keys:
            raise StepFailedError(name, f"{opened}: has no key in the keyring, or is shown twice")
        if not re.fullmatch("[0-9a-f]{64}", shown["key"]):
            raise StepFailedError(name, "key: must be 64 hex digits")
        stated = {name: shown[name] for name in ("keyring_id", "scheme", "context_width")}
        expected = {
            "keyring_id": public.id,
            "scheme": public.scheme.to_json(),
            "context_width": public.context_width,
        }
        if difference := compare(stated, expected):
            raise StepFailedError(name, difference)
        secret = bytes.fromhex(shown["key"])
        same = (shown["salt"], shown["commitment"]) == (commitment.salt, commitment.sha256)
        if not same or not commitment.opens_to(secret):
            raise StepFailedError(name, f"must open the commitment to {opened}; it does not")
        keys[opened] = Key(secret, *opened)
    state.keys = keys
    return ", ".join(map(str, keys))


def check_pairs(state: State) -> str:
    """Pairs are sorted, distinct and of disjoint slots; of 0.1.0, the same in both files."""
    manifest, public = state.whole, state.public
    tables = state.tables
    found = {n for n in manifest.names if n.startswith(f"{PAIRS_FOLDER}/")}
    if not manifest.pairs:
        if found:
            raise StepFailedError(min(found), "must be absent: the manifest says so")
        raise NotPossibleError("the pairs were left out")
    pooled = pooled_slots(public.schedule, list(tables))
    names = [name_pairs(i) for i in range(len(tables))]
    names += [CONTROL_PAIRS, *map(name_pooled, pooled.values()), *name_all_pairs(state)]
    twice = any(name.endswith(PARQUET) for name in found)  # in bundles of 0.1.0
    due = {name + suffix for name in names for suffix in ((CSV, PARQUET) if twice else (CSV,))}
    if odd := sorted(found ^ due):
        raise StepFailedError(odd[0], "missing, or not a file of pairs of this verdict")
    hypotheses: dict[KeyName, WeightedPairs] = {}
    scores: dict[KeyName, Any] = {}
    units: dict[KeyName, Any] = {}
    for number, key in enumerate(tables):
        place = (state.folder, name_pairs(number), public.context_width)
        if is_foreign(public):
            hypotheses[key], scores[key], units[key] = read_shared_pairs(*place)
        else:
            hypotheses[key], scores[key] = read_pairs(*place, scored=True)
    control, _ = _read_unscored(state, CONTROL_PAIRS)
    together = {slot: _read_unscored(state, name_pooled(n))[0] for slot, n in pooled.items()}
    grouped = read_group_pairs(state, hypotheses, scores)
    weighing = Weighing(hypotheses, together, control, groups=grouped)
    _check_disjoint(weighing)
    _check_vocabulary(weighing, public.vocabulary_size)
    state.weighing, state.scores, state.units = weighing, scores, units
    return f"{sum(map(len, hypotheses.values()))} scored, {len(control)} of the control slot"


def _read_unscored(state: State, name: str) -> tuple[WeightedPairs, Any]:
    return read_pairs(state.folder, name, state.public.context_width, scored=False)


def _list_slots(weighing: Weighing) -> list[tuple[str, str, WeightedPairs]]:
    """(slot, name of its file, pairs) of everything in a weighing."""
    rows = [
        (slot, name_pairs(number) + CSV, pairs)
        for number, ((slot, _), pairs) in enumerate(weighing.hypotheses.items())
    ]
    rows.append((CONTROL, CONTROL_PAIRS + CSV, weighing.control))
    rows += [(GLOBAL, PAIRS_FOLDER, pairs) for pairs in weighing.groups.values()]
    return rows + [(slot, PAIRS_FOLDER, pairs) for slot, pairs in weighing.pooled.items()]


def _check_disjoint(weighing: Weighing) -> None:
    """A context belongs to one slot: raise if two slots share one."""
    owner: dict[str, list[Any]] = {}
    for slot, _, pairs in _list_slots(weighing):
        owner.setdefault(slot, []).append(np.unique(name_contexts(pairs.contexts)))
    sets = [np.unique(np.concatenate(parts)) for parts in owner.values()]
    together = np.concatenate([*sets, np.empty(0, dtype=np.int64)])
    if np.unique(together).size != together.size:
        raise StepFailedError(PAIRS_FOLDER, "a context must belong to one slot; one is in two")


def _check_vocabulary(weighing: Weighing, size: int) -> None:
    for _, name, pairs in _list_slots(weighing):
        if len(pairs) and int(max(pairs.contexts.max(), pairs.tokens.max())) >= size:
            raise StepFailedError(name, f"ids must be below {size}; one is not")


def check_slots(state: State) -> str:
    """Every context lies in the slot whose key scores it, by the selector's coin."""
    weighing = state.need(state.weighing, "the pairs")
    if is_foreign(state.public):
        return check_one_slot(state.public, _list_slots(weighing))
    selector = state.keys.get(SELECTOR_KEY)
    if selector is None:
        raise NotPossibleError("the selector is not disclosed")
    schedule = state.public.schedule
    for slot, name, pairs in _list_slots(weighing):
        words = selector.words(pairs.contexts, np.zeros(len(pairs), dtype=np.uint32))
        if not (schedule.assign(words) == schedule.names.index(slot)).all():
            raise StepFailedError(name, f"contexts must lie in slot {slot}; one does not")
    return "every context is in its slot"


def check_scores(state: State) -> str:
    """The scores in the pairs are those of the disclosed keys' coins."""
    weighing = state.need(state.weighing, "the pairs")
    if state.placebos is None and not is_foreign(state.public):
        raise NotPossibleError(f"scheme {state.public.scheme.name} is not one of these keys' own")
    opened, done, missing = state.opened, [], []
    for number, (key, pairs) in enumerate(weighing.hypotheses.items()):
        if key not in opened:
            missing.append(str(key))
            continue
        coins = open_coins(pairs, opened[key])
        units = coins.numbers
        if units is not None and (odd := np.flatnonzero(units != state.units[key])).size:
            raise StepFailedError(
                name_pairs(number) + CSV,
                f"row {odd[0] + 1}: pairs must share a coin as under the key; they do not",
            )
        wrong = np.flatnonzero(coins.scores_of_pairs != state.scores[key])
        if wrong.size:
            raise StepFailedError(
                name_pairs(number) + CSV,
                f"row {wrong[0] + 1}: the score must be that of the key's coin; it is not",
            )
        done.append(str(key))
    if not done:
        raise NotPossibleError("no tested key is disclosed")
    check_group_scores(state, weighing.groups)
    return f"{', '.join(done)}" + (f"; not disclosed: {', '.join(missing)}" if missing else "")


def check_tables(state: State) -> str:
    """Weights and scores of the pairs add up to the class tables of the verdict."""
    tables = state.tables
    weighing = state.need(state.weighing, "the pairs")
    for number, (key, pairs) in enumerate(weighing.hypotheses.items()):
        stated = tables[key]
        law = state.law or _only_law(stated)
        coins = (pairs.weights, state.scores[key])
        if key in state.units:
            coins = add_up(*coins, state.units[key])
        found = ClassTable.from_scores(*coins, law)
        if found != stated:
            raise StepFailedError(
                name_pairs(number) + CSV,
                f"must add up to the table of {key!s} (statistic {stated.statistic}); "
                f"gives {found.statistic}",
            )
    check_group_tables(state, weighing.groups, state.law)
    return f"{len(tables) + len(weighing.groups)} tables"


def _only_law(table: ClassTable) -> NullLaw:
    """The law of a table of a scheme that is not known here; its tail is computed all the same."""
    laws = {row.law for row in table.classes} or {NullLaw((1,))}
    if len(laws) > 1:
        raise NotPossibleError("the pairs do not tell which of several laws each of them has")
    return laws.pop()


def check_tails(state: State) -> str:
    """log10 p of every class table, and weighted Holm over them, are as stated."""
    verdict, law, tables = state.stated, state.law, state.tables
    check_stated_groups(state)
    family = join_family(verdict.hypotheses, verdict.groups)
    for stated in family:
        laws = {row.law for row in stated.table.classes}
        if law is not None and laws - {law}:
            raise StepFailedError(VERDICT_FILE, f"{stated.name}: another law than the scheme's")
    alpha = split_stated_alpha(verdict).keys
    state.hypotheses, state.groups = try_family(tables, state.group_tables, alpha)
    found = join_family(state.hypotheses, state.groups)
    for stated, one in zip(family, found, strict=True):
        if difference := compare(_list_numbers(stated), _list_numbers(one)):
            raise StepFailedError(VERDICT_FILE, f"{one.name}: {difference}")
    said = "; ".join(f"{h.name} {h.tail.log10_p:.2f}" for h in found)
    return said if law is not None else f"{said}; the law of a score is taken as stated"


def _list_numbers(one: HypothesisResult | GroupResult) -> list[Any]:
    return [one.tail.log10_p, one.log10_adjusted, one.family_weight, one.rejected]


def check_controls(state: State) -> str:
    """Every due control is there; those that pairs and keys allow are repeated."""
    hypotheses = state.need(state.hypotheses, "the tails")
    records = rebuild_controls(
        state.stated, hypotheses, state.public, state.weighing, state.opened, state.placebos
    )
    for record in records:
        if record.recomputed is not None:
            difference = compare(asdict(record.stated), asdict(record.recomputed))
            if difference:
                raise StepFailedError(VERDICT_FILE, f"{record.stated.name}: {difference}")
    state.controls = [record.best for record in records]
    if not any(record.recomputed for record in records):
        raise NotPossibleError(_list_controls(records))
    return _list_controls(records)


def _list_controls(records: Sequence[ControlRecord]) -> str:
    repeated = [record.stated.name for record in records if record.recomputed]
    stated = [record.stated.name for record in records if not record.recomputed]
    parts = [("repeated: ", repeated), ("as stated: ", stated)]
    return "; ".join(title + ", ".join(names) for title, names in parts if names)


def check_verdict(state: State) -> str:
    """Conclusion, headline, attribution, shares and every other word follow from the numbers."""
    hypotheses = state.need(state.hypotheses, "the tails")
    controls = state.need(state.controls, "the controls")
    plan = None
    if state.stated.plan is not None:
        plan = state.need(state.plan, "the plan")
    found = rebuild_verdict(state.stated, state.public, hypotheses, controls, plan, state.groups)
    if state.foreign is not None:
        found = replace(found, caveat=say_caveat(state.foreign))
    # with the file, not with what was read of it: some of its fields follow from the others
    if difference := compare(state.document, follows := found.to_json()):
        raise StepFailedError(VERDICT_FILE, difference)
    standing = name_standing(found.plan, found.register)
    return f"{follows['conclusion']}; log10 p {found.log10_p:.2f}; {standing}"


def check_report(state: State) -> str:
    """report.html is what this version makes of the verdict (and of the unchecked trajectory)."""
    verdict = state.stated
    if REPORT_FILE not in state.whole.names:
        raise NotPossibleError("the bundle holds no report")
    try:
        whole = state.whole
        made = make_report(state.folder, state.plan, whole.created, whole.filing)
    except MALFORMED as error:
        raise StepFailedError(
            TRAJECTORY_FILE, f"must be drawable; got: {say_briefly(error)}"
        ) from error
    if made == read_bytes(state.folder / REPORT_FILE):
        return "the same bytes"
    if verdict.is_old:
        raise NotPossibleError("made from a verdict of an older form, which was drawn differently")
    theirs, mine = state.whole.environment, describe_environment()
    packages: Mapping[str, str] = {n: mine[n] for n in ("provenance", "matplotlib", "jinja2")}
    if all(theirs.get(name) == value for name, value in packages.items()):
        raise StepFailedError(REPORT_FILE, "must be what this version makes of verdict.json")
    raise NotPossibleError("made with other versions, which draw it differently")
