"""How much is needed to find a suspect, before anything is collected; and what a check can find.

Before: tokens for a share of marked training data, from the response curves of the laboratory. Out
of what was measured nothing is said: no share beyond the curve, no more tokens than the laboratory
had. After: the least share of each key that a finished check finds. Opens no key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from provenance.check.power_statement import (
    MARGIN,
    POWER,
    Outcome,
    Setting,
    find_curve,
    state_power,
)
from provenance.check.reading import read_result
from provenance.check.verdict import Verdict
from provenance.check.weigh import choose_rule, refuse_retired
from provenance.errors import DataError, UsageError
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import GLOBAL
from provenance.marks.own import make_scheme
from provenance.served.audit_result import LogAudit
from provenance.stats.laws import NullLaw
from provenance.stats.power import detectable_shift, lower_response
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable
from provenance.storage.documents import read_fields, refuse_malformed, take_stated
from provenance.storage.files import as_path, read_json
from provenance.storage.printable import Page, Said

FORMAT: Final = "provenance planned power 1"
LAB_SHARE: Final = 0.2
"""Contexts under the global key in the world of the curves, `gumbel-k2-s20`."""
LAB_SIGNAL: Final = 4.034
"""Signal of the laboratory's teacher: `provenance log audit fixtures/served.parquet`, global."""
_STEPS: Final = 24
_EXIT_CODES: Final = {"tokens": 0, "too many tokens": 3, "share too small": 3}

Needs = Literal["tokens", "too many tokens", "share too small"]


@dataclass(frozen=True)
class PlannedPower(Said):
    """How many tokens find a share with a given probability.

    Attributes
    ----------
    share : of marked responses in the suspect's fine-tuning data
    setting : scheme, context_width, access, weight_rule and reference
    alpha, level : over all keys, and that of the global key alone
    power : wanted probability
    outcome : `tokens`: so many are needed. `too many tokens`: more than were measured. `share too
        small`: the lower limit of its response is not above zero, and no number can be promised
    tokens : of outputs (or of what is read), where the outcome is `tokens`
    coins : effective coins of the global key that so many are taken to hold
    z, z_needed : taken from the curve at `measured` tokens, and needed there
    density, signal : of your text, relative to the laboratory's, at most 1: how many coins a token,
        and how far each lies above its law
    mix : share of the answers of each capability that these were computed from; empty without
    measured : tokens of the curve
    curve : with its origin
    """

    share: float
    setting: Mapping[str, Any]
    alpha: float
    level: float
    power: float
    outcome: Needs
    tokens: int | None
    coins: float
    z: float
    z_needed: float
    density: float
    signal: float
    mix: Mapping[str, float]
    measured: int
    curve: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """Of the command: 3 if no number can be said."""
        return _EXIT_CODES[self.outcome]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: object) -> PlannedPower:
        """What `to_json` wrote. Raises TypeError, ValueError."""
        return read_fields(cls, take_stated(document, frozenset({"format"})))

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        wanted = (
            f"a suspect with {100 * self.share:g} % of marked responses in its fine-tuning data, "
            f"with probability {self.power:g} at alpha {self.alpha:g}"
        )
        if self.outcome == "tokens":
            page.say(f"{self.tokens:,} tokens find {wanted}.")
        elif self.outcome == "too many tokens":
            page.say(
                f"MORE THAN {self.measured:,} tokens are needed to find {wanted}: z {self.z:.1f} "
                f"there, {self.z_needed:.1f} needed. More were not measured, so no number is said. "
                "Take a better access or reference, or a larger share."
            )
        else:
            page.say(
                f"NO NUMBER can be promised to find {wanted}: the lower limit of what such a "
                "student showed in the lab is zero. Take a better access or reference."
            )
        if self.mix:
            parts = ", ".join(f"{name} {100 * part:.0f} %" for name, part in self.mix.items())
            page.say(
                f"Answers are taken to be {parts}. By the audit of the log they hold "
                f"{self.density:.2f} of the coins a token and {self.signal:.2f} of the signal a "
                "coin of the laboratory's; that z is in proportion to both was not measured."
            )
        page.say(
            f"Measured on such students in the lab: {self.curve['students']}, at "
            f"{self.measured:,} tokens; fewer are taken to show less in proportion to the root. "
            "It holds for suspects like these, trained this way; another one may absorb less."
        )
        return str(page)


@dataclass(frozen=True)
class KeyPower:
    """What the test of one key finds: fields as of `power_statement.Power`."""

    key: str
    coins: int
    effective_coins: float
    level: float
    shift: float | None
    share: float | None
    outcome: Outcome


@dataclass(frozen=True)
class DetectablePower(Said):
    """The least share of each key that a finished check finds with probability `power`."""

    power: float
    setting: Mapping[str, Any]
    keys: tuple[KeyPower, ...]
    curve: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, document: object) -> DetectablePower:
        """What `to_json` wrote. Raises TypeError, ValueError."""
        return read_fields(cls, take_stated(document, frozenset({"format"})))

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        page.say(f"What this check finds with probability {self.power:g}, key by key")
        page.table(
            ["key", "coins", "effective", "level", "shift", "share"],
            [
                [
                    one.key,
                    f"{one.coins:,}",
                    f"{one.effective_coins:,.0f}",
                    f"{one.level:.1e}",
                    "-" if one.shift is None else f"{one.shift:.3f}",
                    _say_share(one),
                ]
                for one in self.keys
            ],
        )
        page.say(
            "share: of marked responses in the fine-tuning data, for a value those of its label, "
            "from which on the suspect would have been found by this key alone."
        )
        if self.curve is None:
            page.say("No such suspect was measured: only shifts are stated.")
        else:
            page.say(
                f"Measured on such students in the lab, under the global key: "
                f"{self.curve['students']}. Another one may absorb less."
            )
        return str(page)


def plan_power(
    share: float,
    keyring: Any,
    *,
    access: str = "outputs",
    reference: str = "none",
    rule: str | None = None,
    alpha: float = 1e-4,
    power: float = POWER,
    audit: Any = None,
    mix: Mapping[str, float] | None = None,
) -> PlannedPower:
    """How many tokens are needed to find a share of marked training data.

    Parameters
    ----------
    share : of marked responses in the suspect's fine-tuning data, within the measured ones
    keyring : of the mark; the public half suffices
    access : outputs, weights or logprobs; tokens are those of outputs, or of what is read
    reference : none, ngram or model
    rule : weight rule; None: the one that a check would take
    alpha : over all keys
    power : wanted probability
    audit : `LogAudit`, or the file of `provenance log audit --json`: signals of your traffic
    mix : weight of each capability in the answers; None: as the log has them

    Raises
    ------
    UsageError for arguments outside their domain, a setting without a response curve, or a share
    outside of what was measured; DataError, StorageError for the audit's file.

    Notes
    -----
    The lab's z at a share is its lower limit (z - 1.645, made increasing), and z at fewer tokens is
    taken to fall with their root (measured: with their cube root, so this asks for more). A keyring
    whose global key has another share of contexts has so many coins more or less. Your text is
    never taken to show more than the lab's. z that is needed: the exact tail of equal weights.
    Cost: some 20 exact tails, about a second.
    """
    public: Keyring = getattr(keyring, "public", keyring)
    chosen = rule or choose_rule(sampled=access == "outputs", has_reference=reference != "none")
    setting = Setting(
        public.scheme.name, public.context_width, access, refuse_retired(chosen), reference
    )
    if not (0 < alpha <= 0.05 and alpha < power < 1):
        raise UsageError(
            f"alpha must be in (0, 0.05] and power in (alpha, 1); got {alpha}, {power}. Use 1e-4."
        )
    curve = find_curve(setting)
    if curve is None:
        raise UsageError(
            "power can be planned only where students were measured; got none for "
            f"{', '.join(map(str, asdict(setting).values()))}. Measured: gumbel, k 2, outputs "
            "(none, ngram, model), weights (none, model) and logprobs (model)."
        )
    points = [(float(x), float(z)) for x, z in curve["points"]]
    if not points[0][0] <= share <= points[-1][0]:
        raise UsageError(
            f"share must be within the measured {points[0][0]:g} to {points[-1][0]:g}; got "
            f"{share:g}. Others were not measured."
        )
    lab_coins = float(curve["effective_coins"])
    shift = float(np.interp(share, *lower_response(points, lab_coins, MARGIN)))
    parts, density, signal = _read_mix(audit, mix, public)
    attributes = bool(public.schedule.attributes)
    level = alpha * (0.5 if attributes else 1.0)
    coins = min(lab_coins, lab_coins * density * public.schedule.slot(GLOBAL).share / LAB_SHARE)
    law = make_scheme(public.scheme.name, public.scheme.parameters).null_law
    found = _find_tokens(shift * signal, coins, int(curve["positions"]), law, level, power)
    return PlannedPower(
        share, asdict(setting), alpha, level, power, *found, density, signal, parts,
        int(curve["positions"]), curve,
    )  # fmt: skip


def state_detectable(folder: Any) -> DetectablePower:
    """The least share that each key of a finished check finds, from its bundle.

    Parameters: the folder of `check -o`; of weights, laws and counts alone, never of scores. Levels
    are those of the first Holm step. Raises StorageError, DataError; UsageError for a sequential
    check. Cost: about .5 s a key.
    """
    path = as_path(folder, "the folder of a check")
    verdict = read_result(path)
    if not isinstance(verdict, Verdict):
        raise UsageError(f"{path}: must hold a verdict; it holds a sequential check's report.")
    with refuse_malformed(f"{path}: keyring.json must be that of a bundle", "Make it again."):
        width = int(read_json(path / "keyring.json")["context_width"])
        outputs = verdict.inputs["outputs"]
        setting = Setting(
            str(verdict.scheme["name"]),
            width,
            str(outputs["source"].get("access", "outputs")),
            verdict.weight_rule,
            str(outputs["reference"].get("kind", "none")),
        )
    rows = []
    for one in verdict.hypotheses:
        level = verdict.alpha * one.family_weight
        if one.tail.coins and level > 0:
            said = state_power(one.table, one.name, level, setting)
            found = said.shift, said.share, said.outcome
        else:
            found = None, None, "cannot reject"
        rows.append(KeyPower(one.name, one.tail.coins, one.tail.effective_coins, level, *found))
    return DetectablePower(POWER, asdict(setting), tuple(rows), find_curve(setting))


def _find_tokens(
    shift: float, coins: float, measured: int, law: NullLaw, level: float, power: float
) -> tuple[Needs, int | None, float, float, float]:
    """Outcome, tokens, coins, z at the measured tokens and z that is needed there."""
    z, needed = shift * math.sqrt(coins), _need_z(coins, law, level, power)
    if shift <= 0:
        return "share too small", None, coins, z, needed
    if z < needed:
        return "too many tokens", None, coins, z, needed
    low, high = 0.0, 1.0  # parts of the measured tokens
    for _ in range(_STEPS):
        part = (low + high) / 2
        enough = shift * math.sqrt(part * coins) >= _need_z(part * coins, law, level, power)
        low, high = (low, part) if enough else (part, high)
        if high - low < 1e-3 * high:
            break
    return "tokens", math.ceil(high * measured), high * coins, z, needed


def _need_z(coins: float, law: NullLaw, level: float, power: float) -> float:
    """Mean z that so many coins of equal weight need; infinite if they never reject."""
    count = max(int(coins), 1)
    table = ClassTable((ScoreClass(1, law, count, count * law.support[0]),))
    found = detectable_shift(table, level, power, "equal")
    return math.inf if found is None else found.z


def _read_mix(
    audit: Any, mix: Mapping[str, float] | None, public: Keyring
) -> tuple[dict[str, float], float, float]:
    """Parts of the answers, and coins a token and signal a coin relative to the laboratory's."""
    if audit is None:
        if mix:
            raise UsageError("a mix must come with the audit of the log, which has the signals.")
        return {}, 1.0, 1.0
    rows = _read_signals(audit, public)
    wanted = dict(mix or {name: row["tokens"] for name, row in rows.items()})
    if unknown := sorted(set(wanted) - set(rows)):
        raise UsageError(
            f"a mix must name audited capabilities, {', '.join(sorted(rows))}; got {unknown[0]}. "
            "Audit a log with drawn bits and capability labels."
        )
    total = sum(wanted.values())
    if not (total > 0 and min(wanted.values()) >= 0 and math.isfinite(total)):
        raise UsageError("the parts of a mix must be at least 0, and some above; they are not.")
    parts = {name: part / total for name, part in wanted.items()}
    share = public.schedule.slot("capability").share
    density = {name: row["drawn"] / row["tokens"] / share for name, row in rows.items()}
    coins = sum(part * density[name] for name, part in parts.items())
    mean = sum(part * density[name] * rows[name]["signal"] for name, part in parts.items())
    signal = mean / coins / LAB_SIGNAL if coins else 0.0
    return parts, min(coins, 1.0), min(max(signal, 0.0), 1.0)


def _read_signals(audit: Any, public: Keyring) -> dict[str, dict[str, Any]]:
    """Tokens, drawn tokens and signal of every capability that has coins."""
    if "capability" not in public.schedule.attributes:
        raise UsageError("a mix must have a keyring with the slot capability; this one has none.")
    name = "the audit"
    if isinstance(audit, LogAudit):
        document: Any = audit.to_json()
    else:
        path = as_path(audit, "the audit")
        name, document = str(Path(path)), read_json(path)
    with refuse_malformed(f"{name}: must be what `log audit --json` wrote", "Audit the log again."):
        found = {
            str(row["name"]).partition("=")[2]: row
            for row in document["groups"]
            if row["kind"] == "key" and str(row["name"]).startswith("capability=")
        }
        kept = {n: row for n, row in found.items() if row["signal"] is not None and row["tokens"]}
        [float(row["signal"]) + row["drawn"] / row["tokens"] for row in kept.values()]
    if not kept:
        raise DataError(f"{name}: must have coins of a capability's key; it has none.")
    return kept


def _say_share(one: KeyPower) -> str:
    if one.outcome == "share" and one.share is not None:
        return f"{math.ceil(1000 * one.share - 1e-9) / 10:g} %"
    return {"no share": "not even all", "no curve": "not measured"}.get(one.outcome, "never")
