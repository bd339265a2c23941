"""What the steps of a verification have read so far, each thing only after its step held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from provenance.check.findings import Control, GroupKey, GroupResult, HypothesisResult
from provenance.check.plan import Plan
from provenance.check.score import Weighing
from provenance.check.verdict import Verdict
from provenance.errors import UsageError
from provenance.evidence.manifest import Manifest
from provenance.evidence.steps import NotPossibleError
from provenance.keys.keyring import Key, Keyring
from provenance.keys.schedule import KeyName
from provenance.marks import OpenKey, Placebos, SchemeKey, SchemePlacebos
from provenance.marks.foreign.mark import ForeignMark, is_foreign
from provenance.marks.own import Scheme, make_scheme
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable

_T = TypeVar("_T")


@dataclass(frozen=True)
class Trust:
    """What the verifier knows from elsewhere.

    Attributes
    ----------
    public_key : whose signature is expected; None: whoever's
    roots : certificates of time-stamp authorities; empty: their signatures are not looked at
    unsigned : accept a bundle without signature
    """

    public_key: Ed25519PublicKey | None = None
    roots: tuple[x509.Certificate, ...] = ()
    unsigned: bool = False


@dataclass
class State:
    """Filled in by the steps; None or empty: its step did not hold."""

    folder: Path
    trust: Trust
    manifest: Manifest | None = None
    document: Any = None
    verdict: Verdict | None = None
    keyring: Keyring | None = None
    plan: Plan | None = None
    keys: dict[KeyName, Key] = field(default_factory=dict)
    weighing: Weighing | None = None
    scores: Mapping[KeyName, Any] = field(default_factory=dict)
    units: Mapping[KeyName, Any] = field(default_factory=dict)
    group_scores: Mapping[GroupKey, Any] = field(default_factory=dict)
    foreign: ForeignMark | None = None
    hypotheses: Sequence[HypothesisResult] | None = None
    groups: Sequence[GroupResult] = ()
    controls: Sequence[Control] | None = None

    def need(self, value: _T | None, title: str) -> _T:
        """A thing that an earlier step read; NotPossibleError if that step did not hold."""
        if value is None:
            raise NotPossibleError(f"{title} could not be read or did not hold; see above")
        return value

    @property
    def stated(self) -> Verdict:
        """The verdict as its file states it; `document` is the file itself, parsed."""
        return self.need(self.verdict, "the verdict")

    @property
    def tables(self) -> Mapping[KeyName, ClassTable]:
        """Class table per key, in the verdict's order."""
        return {result.key: result.table for result in self.stated.hypotheses}

    @property
    def group_tables(self) -> Mapping[GroupKey, ClassTable]:
        """Class table per hypothesis on a group, in the verdict's order."""
        return {result.key: result.table for result in self.stated.groups}

    @property
    def public(self) -> Keyring:
        """The keyring's public half."""
        return self.need(self.keyring, "the keyring")

    @property
    def whole(self) -> Manifest:
        """The manifest, all its files in place."""
        return self.need(self.manifest, "the manifest")

    @property
    def placebos(self) -> Placebos | None:
        """What draws placebo keys and knows the law of a score.

        None if this version cannot score the scheme's coins. Another's mark must be disclosed:
        its placebo keys must not correlate with its own key, and its law may depend on it.
        """
        if is_foreign(self.public):
            return self.foreign
        return None if self.scheme is None else SchemePlacebos(self.scheme)

    @property
    def opened(self) -> dict[KeyName, OpenKey]:
        """The disclosed keys that can score coins."""
        if self.foreign is not None:
            return {key: self.foreign.open(*key) for key in self.foreign.public.commitments}
        scheme = self.scheme
        return {} if scheme is None else {p: SchemeKey(k, scheme) for p, k in self.keys.items()}

    @property
    def law(self) -> NullLaw | None:
        """Of the score of one coin, if it is known without the class tables."""
        return None if self.placebos is None else self.placebos.null_law

    @property
    def scheme(self) -> Scheme | None:
        """The scheme of the keyring; None if this version cannot score its coins."""
        stated = self.public.scheme
        try:
            return make_scheme(stated.name, stated.parameters)
        except UsageError:
            return None
