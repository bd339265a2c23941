"""Verification of a bundle that cannot be overlooked: what does not hold is an exception."""

from __future__ import annotations

from typing import Any

from provenance.errors import VerificationError
from provenance.evidence.signature import read_public_key
from provenance.evidence.steps import Verification
from provenance.evidence.timestamp import read_roots
from provenance.evidence.verify.run import verify_bundle
from provenance.evidence.verify.state import Trust
from provenance.storage.files import as_path


def verify(
    bundle: Any, *, public_key: Any = None, trust: Any = None, unsigned: bool = False
) -> Verification:
    """Repeat every step of a bundle from its own files.

    Parameters
    ----------
    bundle : the folder
    public_key : file (PEM) of the expected signer's key; None: whoever signed it
    trust : file (PEM) of root certificates of time-stamp authorities
    unsigned : accept a bundle that nobody signed

    Returns
    -------
    The steps: none failed. What was not possible claims nothing.

    Raises
    ------
    VerificationError if a step failed; its `verification` has all steps. StorageError if there is
    no such folder. Cost: see `verify_bundle`.
    """
    trusted = Trust(
        read_public_key(as_path(public_key, "the public key"), str(public_key))
        if public_key is not None
        else None,
        read_roots(as_path(trust, "the root certificates")) if trust is not None else (),
        unsigned,
    )
    found = verify_bundle(as_path(bundle, "the bundle"), trusted)
    if not found.passed:
        raise VerificationError(found.say_result(), found)
    return found
