"""Kept vectors: what an encoder has seen so far, so that a killed training need not look again.

An encoder takes most of the time before the codebook is there, and only then a run has a
checkpoint.
"""

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from model.network.encoder import Encoder
from model.progress import Progress
from schemas.records import FloatArray
from workers.runtime.pictures import StoredPictures

# Pictures of one file: what a killed training loses at most.
_PART = 256

# Pictures embedded at a time.
_BATCH = 64

_FOLDER = "vectors"


def embed_kept(
    encoder: Encoder,
    pictures: StoredPictures,
    uris: Sequence[str],
    folder: Path,
    progress: Progress,
) -> FloatArray:
    """(N, D) float32 unit vectors of N pictures; what a killed training saw is read from `folder`.

    `uris` tell pictures apart, for those of the store are named by their content.
    """
    # Tells encoders apart, and one that was fitted to other captions from itself.
    name = encoder.embed_images(pictures[:1]).tobytes().hex()
    kept = folder / _FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    parts = [np.zeros((0, encoder.width), np.float32)]
    with progress("embed images", len(pictures)) as bar:
        for start in range(0, len(pictures), _PART):
            end = min(start + _PART, len(pictures))
            file = kept / f"{_digest(name, uris[start:end])}.npy"
            vectors = _read(file, (end - start, encoder.width))
            if vectors is None:
                batches = []
                for first in range(start, end, _BATCH):
                    batches.append(encoder.embed_images(pictures[first : min(first + _BATCH, end)]))
                    bar.update(len(batches[-1]))
                vectors = np.concatenate(batches)
                _write(file, vectors)
            else:
                bar.update(len(vectors))
            parts.append(vectors)
    return np.concatenate(parts)


def forget_vectors(folder: Path) -> None:
    """Remove what a run has kept, once it is in a checkpoint."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _digest(name: str, uris: Sequence[str]) -> str:
    return hashlib.sha256("\n".join((name, *uris)).encode()).hexdigest()[:32]


def _read(file: Path, shape: tuple[int, int]) -> FloatArray | None:
    """What a file holds; None when there is none, or not that."""
    with suppress(OSError, ValueError, EOFError):
        vectors: FloatArray = np.load(file, allow_pickle=False)
        if vectors.shape == shape and vectors.dtype == np.float32 and np.isfinite(vectors).all():
            return vectors
    return None


def _write(file: Path, vectors: FloatArray) -> None:
    # Aside, then renamed: a killed training leaves a whole file or none.
    aside = file.with_suffix(".writing")
    with aside.open("wb") as out:
        np.save(out, vectors, allow_pickle=False)
    aside.replace(file)
