"""Array files: named arrays in one file, memory-mapped to be read, with a digest of every byte.

A mark, the length and the digest of a header, the header, which is JSON, and the arrays that it
lists. A file is replaced as a whole, and one that a crash left half-written fails its digest.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from schemas.records import ByteArray, JsonObject, NamedArrays

# The first bytes of a file, with the version of its layout.
_MARK = b"sigma arrays 1\n\x00"

_LENGTH_BYTES = 8
_DIGEST_BYTES = 32

# Arrays begin at multiples of this, so that numbers of any type can be read where they are.
_ALIGNED_BYTES = 64

# Bytes that are hashed and written at a time.
_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """What a file holds."""

    about: JsonObject
    arrays: NamedArrays
    """Views of the mapped file, read-only."""


def write_arrays(path: Path, about: JsonObject, arrays: NamedArrays) -> None:
    """Write a file, or replace it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another process may write the same file at the same time.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        entries = _entries(arrays)
        header = json.dumps({"about": about, "arrays": entries}).encode()
        with part.open("wb") as file:
            file.write(_MARK + len(header).to_bytes(_LENGTH_BYTES, "little"))
            file.write(hashlib.sha256(header).digest())
            file.write(header)
            for values in arrays.values():
                _align(file)
                for chunk in _chunks(_bytes_of(values)):
                    file.write(chunk.data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_arrays(path: Path) -> ArrayFile:
    """Map a file; `ValueError` when it is damaged, `FileNotFoundError` when there is none."""
    if not path.stat().st_size:
        raise ValueError(f"{path.name} must not be empty; delete it")
    # A plain array: each view of a `memmap` costs as much as twenty of those.
    content: ByteArray = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    begin = len(_MARK) + _LENGTH_BYTES + _DIGEST_BYTES
    if content[: len(_MARK)].tobytes() != _MARK:
        raise ValueError(f"{path.name} must be an array file of this version; delete it")
    length = int.from_bytes(content[len(_MARK) : begin - _DIGEST_BYTES].tobytes(), "little")
    header = content[begin : begin + length]
    if hashlib.sha256(header.data).digest() != content[begin - _DIGEST_BYTES : begin].tobytes():
        raise ValueError(f"the header of {path.name} must have its digest; delete the file")
    document = json.loads(header.tobytes())
    end = begin + length
    arrays: NamedArrays = {}
    for entry in document["arrays"]:
        begin = end + -end % _ALIGNED_BYTES
        gap = content[end:begin]
        end = begin + entry["bytes"]
        part = content[begin:end]
        if gap.any() or _digest(part) != entry["sha256"]:
            raise ValueError(
                f"{entry['name']} in {path.name} must have its digest; delete the file"
            )
        arrays[entry["name"]] = part.view(_dtype(entry["dtype"])).reshape(entry["shape"])
    return ArrayFile(document["about"], arrays)


def _entries(arrays: NamedArrays) -> list[JsonObject]:
    entries = []
    for name, values in arrays.items():
        content = _bytes_of(values)
        entries.append(
            {
                "name": name,
                "dtype": np.lib.format.dtype_to_descr(values.dtype),
                "shape": list(values.shape),
                "bytes": len(content),
                "sha256": _digest(content),
            }
        )
    return entries


def _dtype(described: Any) -> np.dtype[Any]:
    """A type from JSON, in which tuples have become lists."""
    if isinstance(described, str):
        return np.dtype(described)
    fields = [(name, kind, tuple(shape[0]) if shape else ()) for name, kind, *shape in described]
    return np.dtype(fields)


def _bytes_of(values: np.ndarray[Any, Any]) -> ByteArray:
    """The (n,) bytes of an array, without a copy where its numbers follow each other."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _digest(content: ByteArray) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(content):
        digest.update(chunk.data)
    return digest.hexdigest()


def _chunks(content: ByteArray) -> list[ByteArray]:
    return [content[begin : begin + _CHUNK_BYTES] for begin in range(0, len(content), _CHUNK_BYTES)]


def _align(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % _ALIGNED_BYTES))
