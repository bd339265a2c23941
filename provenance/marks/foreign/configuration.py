"""Reading other people's configuration objects: fields, keys and devices.

Error messages name fields and what they must hold; no message shows a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.marks.foreign.scheme import Secret

DEVICE_FIELDS = frozenset({"device", "vocab_size"})
"""Fields that our reader accepts beside the original's own."""


def check_fields(config: Mapping[str, Any], known: Iterable[str], scheme: str) -> None:
    """UsageError for a field that the original does not have: a typo must not change a test."""
    allowed = {*known, *DEVICE_FIELDS}
    if unknown := sorted(str(name) for name in config if name not in allowed):
        raise UsageError(
            f"fields of the {scheme} configuration must be among {', '.join(sorted(allowed))}; "
            f"got {', '.join(unknown)}. Pass the original's own object."
        )


def refuse_cuda(config: Mapping[str, Any], scheme: str, cure: str = "") -> None:
    """ConfigurationMismatchError where `device` says that the coins came from a GPU's generator.

    cure : what can be done about it all the same, a sentence
    """
    device = "cpu" if config.get("device") is None else str(config["device"])
    if device.split(":")[0] != "cpu":
        raise ConfigurationMismatchError(
            f"device of a {scheme} configuration must be cpu; got {device}. The original draws its "
            "lists from torch's generator of the device that it runs on, and the CUDA generator "
            "(Philox, another shuffle) gives other lists than the CPU's MT19937 under the same "
            "key: text marked there cannot be scored here. Say cpu only if it was marked on one."
            + (f" {cure}" if cure else "")
        )


def whole_number(value: object, name: str, low: int, high: int) -> int:
    """The value as an int in low .. high; UsageError otherwise. Never use it for a key."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(
            f"{name} must be a whole number {low} .. {high}; got {value!r}. Use the value that the "
            "text was marked with."
        )
    return value


def read_share(config: Mapping[str, Any], name: str, default: float | None) -> float:
    """A share in (0, 1)."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise UsageError(
            f"{name} must be in (0, 1); got {value!r}. Use the value that the text was marked with."
        )
    return float(value)


def read_vocabulary_size(config: Mapping[str, Any], vocabulary_size: int | None) -> int:
    """The size given beside or inside the configuration."""
    inside = config.get("vocab_size")
    if inside is not None and vocabulary_size is not None and inside != vocabulary_size:
        raise ConfigurationMismatchError(
            f"vocab_size of the configuration and of the model must agree; got {inside} and "
            f"{vocabulary_size}. Use the vocab_size of the marked model's config.json."
        )
    value = vocabulary_size if inside is None else inside
    if value is None:
        raise UsageError(
            "vocabulary_size must be given: the green list is a permutation of the whole "
            "vocabulary; got none. Pass the vocab_size of the marked model's config.json."
        )
    return whole_number(value, "vocabulary_size", 2, 1 << 26)


def read_key(
    config: Mapping[str, Any], field: str, secret: Secret, bits: int, default: int | None = None
) -> int:
    """One key of at most `bits` bits, from the secret or the configuration's field."""
    if secret is not None and not is_whole(secret):
        raise UsageError("the secret of this scheme must be one integer; got something else.")
    inside = config.get(field)
    if inside is not None and secret is not None and inside != secret:
        raise keys_differ(field)
    found = next((value for value in (secret, inside, default) if value is not None), None)
    if found is None:
        raise no_key(field)
    if not is_whole(found) or not 0 <= found < 1 << bits:
        raise UsageError(
            f"{field} must be a whole number of at most {bits} bits; it is not. Check the key."
        )
    return int(found)


def read_keys(config: Mapping[str, Any], field: str, secret: Secret) -> tuple[int, ...]:
    """A list of signed 64-bit keys, from the secret or the configuration's field."""
    inside = config.get(field)
    given = secret if secret is not None else inside
    if given is None:
        raise no_key(field)
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(map(is_whole, given)):
        raise UsageError(f"{field} must be a list of integers; it is not. Check the keys.")
    keys = tuple(int(key) for key in given)
    if secret is not None and inside is not None and tuple(inside) != keys:
        raise keys_differ(field)
    if not keys or not all(-(1 << 63) <= key < 1 << 63 for key in keys):
        raise UsageError(f"{field} must be 1 or more signed 64-bit integers. Check the keys.")
    return keys


def read_secret_pair(secret: Secret, field: str) -> list[int]:
    """The secret of a scheme of one or two keys: [A] or [A, B]. UsageError otherwise."""
    given = [secret] if is_whole(secret) else secret
    if (
        not isinstance(given, (list, tuple))
        or not 1 <= len(given) <= 2
        or not all(is_whole(key) and 0 <= key < 1 << 64 for key in given)
    ):
        raise UsageError(
            f"{field} must be one whole number of at most 64 bits, or a list of two; it is not. "
            "Check the key."
        )
    return list(given)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether the value is an integer and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def no_key(field: str) -> UsageError:
    """For a key that is nowhere."""
    return UsageError(
        f"a key must be given, as the secret or in the configuration's {field}; got none. "
        "Pass the key that the text was marked with."
    )


def keys_differ(field: str) -> ConfigurationMismatchError:
    """For a secret and a configuration that hold different keys."""
    return ConfigurationMismatchError(
        f"the secret and the configuration's {field} must be the same key; they differ. "
        "Remove one of them."
    )
