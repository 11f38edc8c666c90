"""Sketches as plain values for JSON, and back. Arrays are base64 of their little-endian bytes."""

import base64
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from model.drift.sketches import (
    CodeHistogram,
    HitShare,
    LeafCrowding,
    MeanShift,
    Novelty,
    Sketch,
    SortedValues,
)
from schemas.records import JsonObject

KINDS: dict[str, Callable[..., Sketch]] = {
    CodeHistogram.KIND: CodeHistogram,
    SortedValues.KIND: SortedValues,
    HitShare.KIND: HitShare,
    MeanShift.KIND: MeanShift,
    Novelty.KIND: Novelty,
    LeafCrowding.KIND: LeafCrowding,
}


def sketch_to_dict(sketch: Any) -> JsonObject:
    """A sketch as plain values: its kind, and a value for each field."""
    document: JsonObject = {"kind": sketch.KIND}
    for field in fields(sketch):
        document[field.name] = _to_plain(getattr(sketch, field.name))
    return document


def sketch_from_dict(document: JsonObject) -> Sketch:
    """The inverse of `sketch_to_dict`."""
    values = {}
    for name, value in document.items():
        if name != "kind":
            values[name] = _from_plain(value)
    return KINDS[document["kind"]](**values)


def _to_plain(value: Any) -> Any:
    if isinstance(value, HitShare):
        return sketch_to_dict(value)
    if not isinstance(value, np.ndarray):
        return value
    array = value.astype(value.dtype.newbyteorder("<"))
    return {
        "type": array.dtype.str,
        "shape": list(array.shape),
        "bytes": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def _from_plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    # `Novelty` holds another sketch; every other dictionary is an array.
    if "kind" in value:
        return sketch_from_dict(value)
    data = base64.b64decode(value["bytes"])
    return np.frombuffer(data, np.dtype(value["type"])).reshape(value["shape"])
