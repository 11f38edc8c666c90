"""Inductive assignment on one GPU: pictures to identifiers, a batch at a time."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.decoding.assign import BeamSearchAssigner
from model.decoding.decoder import Decoder
from ops.bench.gpu.pictures import random_pictures
from ops.bench.gpu.training import finish
from schemas.records import FloatArray

# The primary leaf and its alternates, as the settings have it by default.
_POSTINGS = 3


@dataclass(frozen=True, slots=True)
class AssignmentFigures:
    """Batches of pictures of four by three, one after the other."""

    batch: int
    images_per_s: float
    """From pixels on the host to leaves on the host."""
    preprocessing: float
    """Share of that time in which the host cuts patches."""


def assignment_figures(sigma: Any, batch: int, batches: int, seed: int) -> AssignmentFigures:
    """Figures of so many batches."""
    assigner = BeamSearchAssigner(Decoder(sigma), _POSTINGS)
    pictures = random_pictures(batch, seed)
    nothing: FloatArray = np.zeros((batch, 0), np.float32)
    assigner.assign(pictures, nothing)
    began = time.perf_counter()
    for _ in range(batches):
        assigner.assign(pictures, nothing)
    finish(sigma.device)
    whole = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(batches):
        sigma.preprocessor(pictures)
    cutting = time.perf_counter() - began
    return AssignmentFigures(batch, batch * batches / whole, cutting / whole)
