"""The step on the register of the case: its chain, its signatures, and what it counts.

It shows what was entered up to this check. It cannot show a second register, nor what was tried
outside; nor that lines after this check's were cut off, which are none of this bundle's business.
"""

from __future__ import annotations

from provenance.check.plan import Plan
from provenance.errors import DataError
from provenance.evidence.register import REGISTER_FILE, Register
from provenance.evidence.register_entries import Tried
from provenance.evidence.signature import fingerprint
from provenance.evidence.steps import NotPossibleError, StepFailedError
from provenance.evidence.verify.rebuild import compare
from provenance.evidence.verify.state import State
from provenance.storage.chain import find_breaks, read_chain, read_links


def check_register(state: State) -> str:
    """Its chain holds, its last line is this check, and its counts are those of the verdict."""
    stated, names = state.stated.register, state.whole.names
    if stated is None:
        if REGISTER_FILE in names:
            raise StepFailedError(REGISTER_FILE, "must be absent: the verdict names no register")
        raise NotPossibleError("not registered in a case: what else was tried is not known")
    if REGISTER_FILE not in names:
        raise StepFailedError(REGISTER_FILE, "must be in the bundle; it is missing")
    path = state.folder / REGISTER_FILE
    if breaks := find_breaks([link.bare() for link in read_links(path)]):
        raise StepFailedError(REGISTER_FILE, breaks[0])
    try:
        links = list(read_chain(path))
        register = Register.read(links, REGISTER_FILE)
    except DataError as error:
        raise StepFailedError(REGISTER_FILE, str(error)) from error
    if sum(link.length + 1 for link in links) != path.stat().st_size:
        raise StepFailedError(REGISTER_FILE, "must end with a whole line; it does not")
    plan = state.need(state.plan, "the plan") if state.stated.plan is not None else None
    _check_entry(state, register, plan)
    if difference := compare(stated.to_json(), register.describe().to_json()):
        raise StepFailedError(REGISTER_FILE, difference)
    return _say(state, register)


def _check_entry(state: State, register: Register, plan: Plan | None) -> None:
    """The last line is this check, before the bundle was written and after its plan was made."""
    last = register.entries[-1]
    if last.kind != "check" or last.facts != Tried.of(state.stated.inputs, plan, None):
        raise StepFailedError(REGISTER_FILE, "its last line must be this check; it is another")
    if register.case is None or register.case.keyring_id != state.public.id:
        raise StepFailedError(REGISTER_FILE, "keyring_id: must be that of the verdict")
    if plan is not None and plan.suspect != register.case.suspect:
        raise StepFailedError(REGISTER_FILE, "suspect: must be that of the plan")
    # seconds, as the manifest and a plan have them
    if last.time[:19] > state.whole.created[:19]:
        raise StepFailedError(REGISTER_FILE, f"entered {last.time}, after {state.whole.created}")
    if plan is not None and max(plan.created, plan.timestamp or "")[:19] > last.time[:19]:
        raise StepFailedError(REGISTER_FILE, f"entered {last.time}, before its plan was made")


def _say(state: State, register: Register) -> str:
    stated = state.stated.register
    if register.key is None or state.trust.public_key is None:
        return str(stated)
    own, expected = fingerprint(register.key), fingerprint(state.trust.public_key)
    return f"{stated}, {'the expected key' if own == expected else 'another key than the bundle'}"
