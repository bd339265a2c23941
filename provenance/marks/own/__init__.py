"""Schemes by name. `make_scheme` is the only place that maps a name to a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from provenance.errors import UsageError
from provenance.marks.own.green import Green
from provenance.marks.own.gumbel import Gumbel
from provenance.marks.own.scheme import Scheme
from provenance.marks.own.tournament import Tournament
from provenance.marks.plugins import Registry

__all__ = ["SCHEMES", "Green", "Gumbel", "Scheme", "Tournament", "make_scheme"]

SCHEMES: Final[Registry[Callable[..., Scheme]]] = Registry(
    {"gumbel": Gumbel, "green": Green, "tournament": Tournament}, Scheme, foreign=False
)


def make_scheme(name: str, parameters: Mapping[str, Any] | None = None) -> Scheme:
    """The scheme of this name and these parameters.

    Of other distributions too (entry points `provenance.schemes`), once they passed a trial.
    Raises UsageError for an unknown name, an unknown parameter or a value outside its domain.

    >>> make_scheme("green", {"gamma": 0.5, "delta": 1.0})
    Green(gamma=0.5, delta=1.0)
    """
    if name not in SCHEMES:
        raise UsageError(f"scheme must be one of {', '.join(SCHEMES)}; got {name}. See the README.")
    try:
        made: Scheme = SCHEMES.make(name, lambda: SCHEMES[name](**(parameters or {})))
    except TypeError as error:
        raise UsageError(
            f"parameters of scheme {name} must be those of its class; got {dict(parameters or {})} "
            f"({error}). See the README."
        ) from error
    return made
