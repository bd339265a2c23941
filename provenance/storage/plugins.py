"""Extension points: what other installed distributions offer under a name that is none of ours.

Entry points are looked up only then, so that a plug-in can neither replace what is built in nor
cost anything where it is not named. Knows names; not what is behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from provenance.errors import ProvenanceError, UsageError, say_briefly


@dataclass(frozen=True)
class Plugin:
    """What an entry point names, and the distribution that brings it."""

    name: str
    distribution: str
    target: Any

    def failure(self, error: Exception) -> ProvenanceError:
        """One line for an error of code that is not ours."""
        if isinstance(error, ProvenanceError):
            return error
        return UsageError(
            f"the plug-in {self.name} of the distribution {self.distribution} must work; got: "
            f"{type(error).__name__}: {say_briefly(error)}. Update or remove the distribution."
        )


def find_plugin(group: str, name: str) -> Plugin | None:
    """The plug-in of this name in this group of entry points; None if nobody offers one.

    Raises UsageError if it cannot be loaded, or if two distributions offer the name.
    """
    found = {
        entry.dist.name if entry.dist else "?": entry
        for entry in entry_points(group=group, name=name)
    }
    if len(found) > 1:
        raise UsageError(
            f"{name} must be offered by one distribution; got {', '.join(sorted(found))}. "
            "Remove the others."
        )
    for distribution, entry in found.items():
        try:
            return Plugin(name, distribution, entry.load())
        except Exception as error:  # whatever an import may raise
            raise Plugin(name, distribution, None).failure(error) from error
    return None
