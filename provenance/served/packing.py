"""One 64-bit number for (slot, context, value), in the order of a table: what is sorted and merged.

Knows the widths of a keyring; no rows, no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import MAXIMUM_VOCABULARY
from provenance.coins.words import MAXIMUM_CONTEXT_WIDTH
from provenance.errors import DataError
from provenance.keys.keyring import Keyring
from provenance.storage.kernels import kernel

Numbers = NDArray[np.uint64]

_ID_BITS = MAXIMUM_VOCABULARY.bit_length() - 1
_NAME_BITS = 63
_KEY_BITS = 64


@dataclass(frozen=True)
class Packing:
    """How many bits each part of a number has: slot highest, then context, then value.

    ids : ids of a context, 0 if it is a hash
    id_bits : bits of an id; of a hash all of them
    value_bits : bits of the number of a value
    """

    ids: int
    id_bits: int
    value_bits: int

    @classmethod
    def of(cls, public: Keyring) -> Packing | None:
        """That of a mark; None if 64 bits are too few (three ids and more than 1,000 values)."""
        slots = public.schedule.slots
        width = public.context_width
        value_bits = (max(len(slot.values) for slot in slots) - 1).bit_length()
        free = _KEY_BITS - value_bits - (len(slots) - 1).bit_length()
        if width > MAXIMUM_CONTEXT_WIDTH:
            return cls(0, _NAME_BITS, value_bits) if free >= _NAME_BITS else None
        bits = _ID_BITS
        if width * bits > free:
            bits = (public.vocabulary_size - 1).bit_length()
        return cls(width, bits, value_bits) if width * bits <= free else None

    def pack(
        self, slot: NDArray[np.uint8], value: NDArray[np.uint32], context: NDArray[np.int64]
    ) -> Numbers:
        """The number of each row, uint64 [n]. Raises DataError for a context out of range."""
        out = np.empty(context.shape[0], dtype=np.uint64)
        if not _pack(slot, value, context, self.ids, self.id_bits, self.value_bits, out):
            raise DataError("contexts of an index must be of its tokens. Build it again.")
        return out

    def unpack(
        self, numbers: Numbers
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.int64]]:
        """Slot, value and context of each number: uint8, uint32, int64 [n]."""
        slot = np.empty(numbers.shape[0], dtype=np.uint8)
        value = np.empty(numbers.shape[0], dtype=np.uint32)
        context = np.empty(numbers.shape[0], dtype=np.int64)
        _unpack(numbers, self.ids, self.id_bits, self.value_bits, slot, value, context)
        return slot, value, context


@kernel(nogil=True)
def _pack(slot, value, context, ids, id_bits, value_bits, out):  # type: ignore[no-untyped-def]
    """False if a context has an id of too many bits."""
    shift = np.uint64(value_bits)
    slot_shift = np.uint64(value_bits + max(ids, 1) * id_bits)
    good = True
    for i in range(context.shape[0]):
        packed = np.uint64(context[i])
        if ids > 0:
            packed = np.uint64(0)
            for j in range(ids - 1, -1, -1):
                one = np.uint64(context[i] >> (_ID_BITS * j))
                one &= np.uint64((1 << _ID_BITS) - 1)
                good &= one >> np.uint64(id_bits) == np.uint64(0)
                packed = (packed << np.uint64(id_bits)) | one
            good &= context[i] >> (_ID_BITS * ids) == 0
        out[i] = (np.uint64(slot[i]) << slot_shift) | (packed << shift) | np.uint64(value[i])
        good &= np.uint64(value[i]) >> shift == np.uint64(0)
    return good


@kernel(nogil=True)
def _unpack(numbers, ids, id_bits, value_bits, slot, value, context):  # type: ignore[no-untyped-def]
    slot_shift = np.uint64(value_bits + max(ids, 1) * id_bits)
    value_mask = np.uint64((1 << value_bits) - 1)
    id_mask = np.uint64((1 << id_bits) - 1)
    name_mask = np.uint64(0x7FFFFFFFFFFFFFFF)
    for i in range(numbers.shape[0]):
        number = numbers[i]
        value[i] = np.uint32(number & value_mask)
        rest = number >> np.uint64(value_bits)
        if ids > 0:
            name = np.int64(0)
            for j in range(ids):
                one = (rest >> np.uint64(id_bits * (ids - 1 - j))) & id_mask
                name |= np.int64(one) << (_ID_BITS * (ids - 1 - j))
            context[i] = name
        else:
            context[i] = np.int64(rest & name_mask)
        slot[i] = np.uint8(number >> slot_shift)
