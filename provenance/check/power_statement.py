"""What a check could have found: the statement that belongs to every negative verdict.

From the class table of one key alone (weights, law and counts; never the observed scores): the
smallest mean shift that the check finds with probability .9, and, where a response curve of such a
suspect was measured in the lab, the share of marked training data that leaves such a shift. The
curves lie in response_curves.json beside this module; `python -m benchmarks.power.response` writes
them from the recorded results.

Opens no key and knows no tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Final, Literal

from provenance.errors import UsageError
from provenance.keys.keyring import Keyring
from provenance.stats.power import DetectableShift, detectable_shift, invert_response
from provenance.stats.tables import ClassTable
from provenance.storage.files import parse_json

POWER: Final = 0.9
MARGIN: Final = 1.645
"""Standard errors taken off each measured z: its lower 95 % limit over the draw of a key."""

LEAST_COINS: Final = 1000
"""Effective coins below which nothing is said where no student like the suspect was measured."""

_CURVES: Final = "response_curves.json"
_FORMAT: Final = "provenance response curves 1"

Outcome = Literal["share", "no share", "no curve", "cannot reject"]


@dataclass(frozen=True)
class Setting:
    """What decides which response curve applies.

    Attributes
    ----------
    scheme : name of the scheme
    context_width : k
    access : outputs, weights or logprobs
    weight_rule : a name of `provenance.check.weigh.RULES`
    reference : kind of the reference, "none" without one
    """

    scheme: str
    context_width: int
    access: str
    weight_rule: str
    reference: str

    @classmethod
    def of(cls, keyring: Keyring, weight_rule: str, outputs: Mapping[str, Any]) -> Setting:
        """From the public keyring and what a verdict says of the suspect, `inputs["outputs"]`."""
        access = str(outputs["source"].get("access", "outputs"))
        reference = str(outputs["reference"].get("kind", "none"))
        return cls(keyring.scheme.name, keyring.context_width, access, weight_rule, reference)


@dataclass(frozen=True)
class Power:
    """What this check finds with probability `power`.

    Attributes
    ----------
    key : the key whose test is meant
    alpha : level of this key's test, its part of the family's alpha
    power : probability of finding it
    shift, z : smallest mean shift of a score that is found, in standard deviations of one score,
        and the mean z that it gives; None if the test can never reject
    exact : False if few coins have huge weights, and shift is a normal approximation
    outcome : `share`: a suspect like those of the curve, with at least this share of marked
        responses in its training data, would have been found. `no share`: not even one that was
        trained on nothing else surely would. `no curve`: no such suspect was measured. `cannot
        reject`: too few coins for any p <= alpha
    share : for the outcome `share`, else None
    curve : the curve that was used, with its origin, else None
    """

    key: str
    alpha: float
    power: float
    shift: float | None
    z: float | None
    exact: bool
    outcome: Outcome
    share: float | None
    curve: Mapping[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


def state_power(table: ClassTable, key: str, alpha: float, setting: Setting) -> Power:
    """The smallest effect, and share of marked training data, that the test of one key finds.

    Parameters
    ----------
    table : class table of the key; only weights, laws and counts matter
    key : its name
    alpha : level of its test, after the family has been paid for
    setting : chooses the response curve

    Notes
    -----
    The lab's mean shift at a share is taken as (z - 1.645) / sqrt(coins of the lab). It is not
    carried to more coins than the lab had: there the suspect is taken to show the lab's z, not a
    larger one. Both make the stated share larger. Assumes that the suspect is like the lab's: size,
    training, mark, weight rule; another student may absorb less.

    Cost: about .5 s for a table of 100 classes, whatever the number of coins.
    """
    found = detectable_shift(table, alpha, POWER)
    if found is None:
        return Power(key, alpha, POWER, None, None, True, "cannot reject", None, None)
    curve = find_curve(setting)
    share = None if curve is None else _share(curve, found, table.effective_coins)
    outcome: Outcome = "no curve" if curve is None else "no share" if share is None else "share"
    return Power(key, alpha, POWER, found.shift, found.z, found.exact, outcome, share, curve)


def find_shortfall(power: Power, table: ClassTable, setting: Setting) -> str | None:
    """Why these data could not find even a fully trained suspect, with counts; None if they could.

    Parameters: the statement, and the table and setting that it was made from.

    Where a response curve applies, it decides. Where none does, two bounds stand in for it: the
    largest shift that any fully trained student of the lab showed under a mark of this kind (by its
    law: green lists have two scores, tournaments a symmetric law), and `LEAST_COINS`.
    """
    coins = f"{table.coins:,} coins of the {power.key} key ({table.effective_coins:,.0f} effective)"
    if power.outcome == "share":
        return None
    if power.shift is None:
        return (
            f"too little data: {coins} cannot reject at level {power.alpha:.2g}, whatever they say"
        )
    finds = (
        f"too little data: {coins} find a mean shift of {power.shift:.3f} with probability "
        f"{power.power:g}"
    )
    if power.outcome == "no share":
        return f"{finds}, more than a suspect trained on marked responses alone surely shows"
    mark = _kind_of_mark(table)
    strongest = _find_strongest(mark, setting.access)
    if strongest is not None and power.shift > strongest:
        return (
            f"{finds}; the largest that any suspect trained on marked responses alone showed in "
            f"the lab, under a mark like {mark}, is {strongest:.3f}"
        )
    if table.effective_coins < LEAST_COINS:
        return (
            f"{finds}; no suspect like this one was measured, and then at least {LEAST_COINS:,} "
            "effective coins are asked for"
        )
    return None


def say_power(power: Power) -> str:
    """The statement in plain words, with what it assumes, for terminal and report."""
    if power.outcome == "cannot reject":
        return "This check had too few coins to find anything, however strong the trace."
    effect = (
        f"a mean shift of {power.shift:.3f} standard deviations per coin of the {power.key} key, "
        f"at level {power.alpha:.2g}" + ("" if power.exact else ", by a normal approximation")
    )
    if power.curve is None:
        return (
            f"With probability {power.power:g} this check finds {effect}. What share of marked "
            "training data that means was not measured for this scheme, access and weight rule."
        )
    like = (
        f"Measured on such students in the lab: {power.curve['students']}. It holds for suspects "
        "like these, trained this way; another one may absorb less."
    )
    if power.share is None:
        return (
            "Even a suspect trained on marked responses alone need not have been found with these "
            f"coins: with probability {power.power:g} they find {effect}. {like}"
        )
    return (
        f"A suspect with at least {_round_up(power.share)} % of marked responses in its "
        f"fine-tuning data would have been found with probability {power.power:g} ({effect}). "
        f"{like}"
    )


def _round_up(share: float) -> str:
    """Percent, never less than the share: whole, or with one digit below 10."""
    tenths = math.ceil(1000 * share - 1e-9)
    return f"{tenths / 10:.1f}" if tenths < 100 else f"{-(-tenths // 10)}"


def find_curve(setting: Setting) -> dict[str, Any] | None:
    """The response curve that was measured in this setting, as the file has it; None if none was.

    Raises UsageError if the package's own file is not what it must be.
    """
    return next((c for c in _read_curves()["curves"] if c["setting"] == asdict(setting)), None)


def _read_curves() -> dict[str, Any]:
    content: dict[str, Any] = parse_json(
        files("provenance.check").joinpath(_CURVES).read_bytes(), _CURVES
    )
    if content.get("format") != _FORMAT:
        raise UsageError(f"{_CURVES}: must have the format {_FORMAT!r}. Install the package again.")
    return content


def _find_strongest(mark: str, access: str) -> float | None:
    """Largest shift of a fully trained student of the lab; of any access if this was not tried."""
    rows = [row for row in _read_curves()["strongest"] if row["mark"] == mark]
    own = [row for row in rows if row["access"] == access] or rows
    return max((float(row["shift"]) for row in own), default=None)


def _kind_of_mark(table: ClassTable) -> str:
    """Which of our schemes this law is like: green, tournament or gumbel."""
    masses = table.classes[0].law.masses
    if len(table.classes[0].law.support) == 2:
        return "green"
    return "tournament" if masses == masses[::-1] else "gumbel"


def _share(curve: Mapping[str, Any], found: DetectableShift, coins: float) -> float | None:
    """Share at which the curve reaches the shift; None if it never does."""
    lab = float(curve["effective_coins"])
    shift = found.z / math.sqrt(min(coins, lab))
    points = [(float(share), float(z)) for share, z in curve["points"]]
    try:
        return invert_response(points, lab, shift, MARGIN)
    except UsageError:
        # outside of what was measured: below it the smallest measured share is the safe statement
        lowest = min(z for _, z in points) - MARGIN
        return points[0][0] if shift < lowest / math.sqrt(lab) else None
