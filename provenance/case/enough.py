"""Do the outputs suffice? Looks at outputs and weights, at no coin: it costs no error rate."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from provenance.check.score import weigh_coins, weigh_observations
from provenance.check.weigh import choose_rule, refuse_retired
from provenance.marks import KeyringMark
from provenance.marks.alpha import family_weights
from provenance.stats.looks import coins_needed, effective_coins, outputs_suffice
from provenance.storage.printable import Page, Said

if TYPE_CHECKING:
    from provenance.marks import Mark
    from provenance.served.index import Index
    from provenance.suspect.observations import Observations

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeySufficiency:
    """One key: how many coins there are, their effective number, and how many are needed."""

    key: str
    pairs: int
    coins: int
    effective_coins: float
    needed: float
    suffices: bool


@dataclass(frozen=True)
class Sufficiency(Said):
    """Whether the test of the key with the largest share of alpha finds the shift.

    Attributes: the shift, alpha and the wanted probability (power), as asked for; one row per key
    of the check, in its order.
    """

    suffices: bool
    shift: float
    alpha: float
    power: float
    keys: tuple[KeySufficiency, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "suffices": self.suffices,
            "shift": self.shift,
            "alpha": self.alpha,
            "keys": [asdict(key) for key in self.keys],
        }

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        page.say("The outputs suffice." if self.suffices else "MORE OUTPUTS are needed.")
        page.table(
            ["key", "coins", "effective", "needed", "suffices"],
            [
                [
                    row.key,
                    f"{row.coins:,}",
                    f"{row.effective_coins:,.0f}",
                    f"{row.needed:,.0f}",
                    "yes" if row.suffices else "",
                ]
                for row in self.keys
            ],
            f"Finding a shift of {self.shift:g} with probability {self.power:g}, "
            f"alpha {self.alpha:g} over all keys",
        )
        return str(page)


def suffice(
    observations: Observations,
    index: Index,
    mark: Mark,
    shift: float,
    alpha: float,
    power: float,
    rule: str | None,
) -> Sufficiency:
    """See `Case.enough`. Raises UsageError."""
    has_reference = bool(observations.reference)
    rule = refuse_retired(rule or choose_rule(sampled=True, has_reference=has_reference))
    _LOG.info("Weighing")
    weighing = weigh_observations(observations, index, mark, rule)
    own, rows = isinstance(mark, KeyringMark), []  # of our own no tested key is even derived
    shares = family_weights(list(weighing.hypotheses))
    for (key, pairs), share in zip(weighing.hypotheses.items(), shares, strict=True):
        level = alpha * float(share)
        weights = pairs.weights if own else weigh_coins(pairs, mark.open(*key))
        rows.append(
            KeySufficiency(
                key=str(key),
                pairs=len(pairs),
                coins=int((weights != 0).sum()),
                effective_coins=effective_coins(weights),
                needed=coins_needed(shift, level, power),
                suffices=outputs_suffice(weights, shift, level, power),
            )
        )
    suffices = bool(rows) and rows[int(shares.argmax())].suffices
    return Sufficiency(suffices, shift, alpha, power, tuple(rows))
