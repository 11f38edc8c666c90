"""Metadata columns: what is known of images by slot, and which slots a filter allows.

A *column* holds the values of one kind in one field: a row number and a value for each. Every image
with metadata gets a new row number, so a deleted one is forgotten by emptying its row, and a slot
that is used again has nothing of its former image. Memory grows with what images carry, not with
the number of fields; when half of the rows are empty, all columns are made anew.

Letters in shapes: N slots, R rows, E entries of a column.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.filters import And, AnyOf, Bound, Exists, Filter, Not, Or, Range
from schemas.metadata import Metadata, MetadataValue, microseconds
from schemas.records import BoolArray, IntArray

Int32Array = npt.NDArray[np.int32]

# A row whose image is gone, and a slot without metadata.
_NONE = -1

# Rows that may be empty before half of all rows are.
_LEAST_EMPTY = 4096

# Entries that room is made for at first: some fields are of one image only.
_FIRST = 4

# The kinds of values, and how they are stored: texts and tags as codes, times in microseconds.
_DTYPES: Mapping[str, npt.DTypeLike] = {
    "text": np.int32,
    "number": np.float64,
    "boolean": np.bool_,
    "time": np.int64,
}


class _Grown:
    """An array that grows by doubling."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._array: npt.NDArray[Any] = np.empty(_FIRST, dtype)
        self.size = 0

    @property
    def values(self) -> npt.NDArray[Any]:
        return self._array[: self.size]

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    def extend(self, values: Sequence[Any] | npt.NDArray[Any]) -> None:
        end = self.size + len(values)
        if end > len(self._array):
            larger = np.empty(max(end, 2 * len(self._array)), self._array.dtype)
            larger[: self.size] = self.values
            self._array = larger
        self._array[self.size : end] = values
        self.size = end


class _FieldColumn:
    """The values of one kind in one field."""

    def __init__(self, kind: str) -> None:
        self.rows = _Grown(np.int32)
        self.values = _Grown(_DTYPES[kind])
        self.codes: dict[str, int] = {}
        """Of texts."""

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.values.nbytes

    def stored(self, value: Any) -> Any:
        """A value as it is stored."""
        return self.codes.setdefault(value, len(self.codes)) if isinstance(value, str) else value


class MetadataColumns:
    """Metadata of the images of one generation. For one thread."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], _FieldColumn] = {}
        """By field and kind."""
        self._slot_of_row = _Grown(np.int32)
        self._row_of_slot = _Grown(np.int32)
        self._empty = 0

    @property
    def images(self) -> int:
        """Images with metadata."""
        return self._slot_of_row.size - self._empty

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; dictionaries of texts are not counted."""
        columns = sum(column.nbytes for column in self._columns.values())
        return columns + self._slot_of_row.nbytes + self._row_of_slot.nbytes

    def insert(self, metadata: Mapping[int, Metadata]) -> None:
        """Add the metadata of images by slot; a slot that has some gets the new one."""
        if not metadata:
            return
        slots = np.fromiter(metadata, np.int64, len(metadata))
        self._delete_rows(slots)
        first = self._slot_of_row.size
        self._slot_of_row.extend(slots)
        missing = int(slots.max()) + 1 - self._row_of_slot.size
        if missing > 0:
            self._row_of_slot.extend(np.full(missing, _NONE, np.int32))
        self._row_of_slot.values[slots] = np.arange(first, first + len(slots))
        self._add_entries(metadata.values(), first)

    def delete(self, slots: IntArray) -> None:
        """Forget images by (N,) slots; those without metadata are ignored."""
        self._delete_rows(slots)
        if self._empty > max(_LEAST_EMPTY, self._slot_of_row.size // 2):
            self._compact()

    def allowed(self, wanted: Filter, size: int) -> BoolArray:
        """Which of the slots below `size` a filter allows, (size,).

        Slots without an image are allowed by some filters.
        """
        return self._allowed(wanted, size, negated=False)

    def _allowed(self, wanted: Filter, size: int, *, negated: bool) -> BoolArray:
        """The same, or which slots match its negation: De Morgan, down to the conditions."""
        match wanted:
            case Not(part):
                return self._allowed(part, size, negated=not negated)
            case And(parts) | Or(parts):
                masks = [self._allowed(part, size, negated=negated) for part in parts]
                both = isinstance(wanted, And) is not negated
                return np.logical_and.reduce(masks) if both else np.logical_or.reduce(masks)
            case Exists(field):
                found = self._holders(field, _DTYPES, size)
                return ~found if negated else found
            case AnyOf() | Range():
                return self._condition(wanted, size, negated=negated)

    def _condition(self, wanted: AnyOf | Range, size: int, *, negated: bool) -> BoolArray:
        mask = np.zeros(size, np.bool_)
        kinds = _kinds(wanted)
        for kind in kinds:
            column = self._columns.get((wanted.field, kind))
            if column is not None:
                chosen = _matching(column, wanted, kind)
                mask[self._slots(column.rows.values[chosen], size)] = True
        if not negated:
            return mask
        return ~mask & self._holders(wanted.field, kinds, size)

    def _holders(self, field: str, kinds: Iterable[str], size: int) -> BoolArray:
        """Which slots have a value of some kinds in a field, (size,)."""
        mask = np.zeros(size, np.bool_)
        for kind in kinds:
            column = self._columns.get((field, kind))
            if column is not None:
                mask[self._slots(column.rows.values, size)] = True
        return mask

    def _slots(self, rows: Int32Array, size: int) -> Int32Array:
        """The slots of (R,) rows, less those of images that are gone."""
        slots = self._slot_of_row.values[rows]
        return slots[(slots != _NONE) & (slots < size)]

    def _delete_rows(self, slots: IntArray) -> None:
        known = slots[(slots >= 0) & (slots < self._row_of_slot.size)]
        rows = self._row_of_slot.values[known]
        rows = np.unique(rows[rows != _NONE])
        self._slot_of_row.values[rows] = _NONE
        self._row_of_slot.values[known] = _NONE
        self._empty += len(rows)

    def _add_entries(self, documents: Iterable[Metadata], first: int) -> None:
        """Add the values of images whose rows follow each other."""
        # Collected first: extending an array for every value would take many times as long.
        entries: dict[tuple[str, str], tuple[list[int], list[Any]]] = {}
        for row, document in enumerate(documents, first):
            for field, value in document.items():
                for kind, scalar in _scalars(value):
                    rows, values = entries.setdefault((field, kind), ([], []))
                    rows.append(row)
                    values.append(scalar)
        for key, (rows, values) in entries.items():
            if key not in self._columns:
                self._columns[key] = _FieldColumn(key[1])
            column = self._columns[key]
            column.rows.extend(rows)
            column.values.extend([column.stored(value) for value in values])

    def _compact(self) -> None:
        """Make rows and columns anew without what is gone."""
        slots = self._slot_of_row.values
        is_kept = slots != _NONE
        new_rows = np.cumsum(is_kept) - 1
        for key, column in list(self._columns.items()):
            del self._columns[key]
            chosen = is_kept[column.rows.values]
            if chosen.any():
                self._columns[key] = _compacted(column, key[1], chosen, new_rows)
        kept = slots[is_kept]
        self._slot_of_row = _Grown(np.int32)
        self._slot_of_row.extend(kept)
        self._row_of_slot.values[kept] = np.arange(len(kept))
        self._empty = 0


def _scalars(value: MetadataValue) -> list[tuple[str, Any]]:
    """The values of a field, each with its kind."""
    # In Python a bool is an int.
    if isinstance(value, bool):
        return [("boolean", value)]
    if isinstance(value, int | float):
        return [("number", value)]
    if isinstance(value, tuple):
        return [("text", tag) for tag in value]
    moment = microseconds(value)
    return [("text", value)] if moment is None else [("time", moment)]


def _kinds(wanted: AnyOf | Range) -> list[str]:
    """The kinds of values that a condition is about."""
    if isinstance(wanted, Range):
        return ["time" if wanted.of_times else "number"]
    return [kind for kind, values in _wanted_by_kind(wanted).items() if values]


def _wanted_by_kind(wanted: AnyOf) -> dict[str, Sequence[Any]]:
    return {
        "text": wanted.texts,
        "number": wanted.numbers,
        "boolean": wanted.booleans,
        "time": wanted.times,
    }


def _matching(column: _FieldColumn, wanted: AnyOf | Range, kind: str) -> BoolArray:
    """Which (E,) entries of a column match a condition."""
    values = column.values.values
    if isinstance(wanted, Range):
        return _within(values, wanted.low, wanted.high)
    sought = _wanted_by_kind(wanted)[kind]
    if kind == "text":
        sought = [column.codes[text] for text in sought if text in column.codes]
    if len(sought) == 1:
        return np.asarray(values == sought[0])
    return np.isin(values, np.array(sought, values.dtype))


def _within(values: npt.NDArray[Any], low: Bound | None, high: Bound | None) -> BoolArray:
    inside = np.ones(len(values), np.bool_)
    if low is not None:
        inside &= values > low.value if low.is_open else values >= low.value
    if high is not None:
        inside &= values < high.value if high.is_open else values <= high.value
    return inside


def _compacted(
    column: _FieldColumn, kind: str, chosen: BoolArray, new_rows: IntArray
) -> _FieldColumn:
    """A column of the chosen (E,) entries, under the numbers that their rows get."""
    values = column.values.values[chosen]
    compacted = _FieldColumn(kind)
    if kind == "text":
        texts = list(column.codes)
        used, values = np.unique(values, return_inverse=True)
        compacted.codes = {texts[code]: place for place, code in enumerate(used.tolist())}
    compacted.rows.extend(new_rows[column.rows.values[chosen]])
    compacted.values.extend(values)
    return compacted
