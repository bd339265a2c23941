"""Groups of responses at the front door: opened, and matched with the index of a case."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

from provenance.check.plan import COMMITTED_OF_GROUP, commit_groups, is_group_name
from provenance.errors import UsageError
from provenance.served.group_index import GroupIndex, refuse_foreign
from provenance.served.group_manifest import GroupManifest
from provenance.storage.files import as_path

if TYPE_CHECKING:
    from provenance.check.examine import Announce
    from provenance.check.registered import Registered
    from provenance.keys.keyring import Keyring
    from provenance.marks import Mark
    from provenance.served.index import Index

_LOG: Final = logging.getLogger(__name__)
_MOST: Final = 100


@contextmanager
def open_groups(
    groups: Mapping[str, Any] | None, index: Index, mark: Mark
) -> Iterator[dict[str, GroupIndex]]:
    """The groups by name, in the order of their names: verified, and of the log of the index.

    Parameters: folder of each group by its name (None: none); the index; the mark. Raises
    UsageError for a name, or another library's mark; StorageError, DataError;
    ConfigurationMismatchError for a group of another log or keyring.
    """
    check_names(groups)
    if groups:
        refuse_foreign(mark.public)
    with ExitStack() as opened:
        found = {}
        for name in sorted(groups or {}):
            folder = as_path((groups or {})[name], f"group {name}")
            group = opened.enter_context(GroupIndex.open(folder))
            group.manifest.check_index(index.manifest, str(folder))
            found[name] = group
        yield found


def tell_groups(announce: Announce | None, inputs: Mapping[str, Any]) -> Registered | None:
    """Say in the program's log what each group has for this suspect; then what `announce` says.

    For `examine_outputs`, which calls it before a key is opened.
    """
    for name, group in inputs.get("groups", {}).items():
        met, coins = group["contexts_met"], group["coins"]
        _LOG.info(
            f"Group {name}: {group['exclusive']:,} exclusive contexts, of which the suspect meets "
            f"{met['group']:,}, with {coins['group']:,} coins; of what only the others got it "
            f"meets {met['others']:,}, with {coins['others']:,} coins.",
            extra={"told": True},
        )
    return None if announce is None else announce(inputs)


def plan_groups(
    groups: Mapping[str, Any] | None, index: Index, public: Keyring
) -> dict[str, dict[str, str]] | None:
    """What a plan fixes of groups: who is in them, by the hash of the list, and of which log.

    Raises as `open_groups`; None without groups.
    """
    check_names(groups)
    found = {}
    if groups:
        refuse_foreign(public)
    for name, given in (groups or {}).items():
        folder = as_path(given, f"group {name}")
        manifest = GroupManifest.load(folder)
        manifest.check_index(index.manifest, str(folder))
        found[name] = {one: getattr(manifest, one) for one in COMMITTED_OF_GROUP}
    return commit_groups(found)


def check_names(groups: Mapping[str, Any] | None) -> None:
    """Raise UsageError for too many groups, or names that do not do."""
    if groups and len(groups) > _MOST:
        raise UsageError(
            f"groups must be at most {_MOST}, since each weakens the test of all; got "
            f"{len(groups):,}. Choose those that matter before looking."
        )
    if odd := [name for name in groups or {} if not is_group_name(name)]:
        raise UsageError(
            f"a group's name must be 1 to 64 letters, digits, dots, hyphens or underscores; got "
            f"{ascii(odd[0])[:80]}. Example: --group campaign=group/"
        )
