"""The pretrained encoder: the two towers of a published model, with what is the same for all.

Letters in shapes: N images, B texts, D width of the embedding.
"""

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.file_digests import DIGESTS, write_digests
from model.network.hub import load_weights
from model.network.resize import Pixels
from schemas.records import FloatArray

# Images or texts that pass a tower at once: bounds memory on a CPU, and is enough for one there.
BATCH = 32

# Describes the packaged encoder (`model.network.encoders.conse`) in a folder that keeps it.
PACKAGED_ABOUT = "encoder.json"

T = TypeVar("T")


class Towers(Protocol):
    """What one family of models has of its own."""

    width: int
    """D."""
    scale: float
    """What turns a cosine into a logit."""
    bias: float
    """What is added to the logit: SigLIP's sigmoid loss learns one, the others have 0."""
    side_px: int
    """Pixels of a side of the square that the image tower reads."""

    def image_features(self, images: Pixels) -> Tensor:
        """(N, D) vectors of any length and of the model's own number type."""
        ...

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) likewise."""
        ...


@runtime_checkable
class CuttableTowers(Towers, Protocol):
    """Towers whose vectors may be cut: a shorter prefix is an embedding too."""

    def cut(self, width: int) -> None:
        """Give vectors of at most that width from here on."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderFiles:
    """The files that an encoder was read from: `names` in `folder`.

    `source` is what was asked for: a folder, or a hub name with the revision that it stood for.
    """

    source: str
    folder: Path
    names: tuple[str, ...]


class PretrainedEncoder:
    """The `Encoder` of a published model; its weights stay as they are."""

    def __init__(self, towers: Towers, files: EncoderFiles, batch: int = BATCH) -> None:
        """`batch`: images or texts that pass a tower at once."""
        self.towers = towers
        self.files = files
        self.batch = batch
        self.width = towers.width
        self.scale = towers.scale
        self.bias = towers.bias
        self.side_px = towers.side_px
        # A tokenizer keeps padding and truncation as state, and generations share an encoder.
        self._lock = threading.Lock()

    @property
    def source(self) -> str:
        """The folder, or the hub name with its revision, that it was read from first."""
        return self.files.source

    def embed_images(self, images: Pixels) -> FloatArray:
        """(N, D) float32 unit vectors of N images."""
        return self._embed(images, self.towers.image_features)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """(B, D) float32 unit vectors of B texts."""
        with self._lock:
            return self._embed(texts, self.towers.text_features)

    def keep(self, folder: Path) -> None:
        """Put the model's files into a new folder, with their digests."""
        # A folder with digests belongs to a checkpoint, whose files are replaced and never changed:
        # generations may share them. Those of a person may change at any time.
        shared = (self.files.folder / DIGESTS).is_file()
        folder.mkdir(parents=True)
        for name in self.files.names:
            _place(self.files.folder / name, folder / name, shared)
        write_digests(folder)

    @torch.inference_mode()
    def _embed(self, items: Sequence[T], features: Callable[[Sequence[T]], Tensor]) -> FloatArray:
        vectors = [np.zeros((0, self.width), dtype=np.float32)]
        for start in range(0, len(items), self.batch):
            rows = features(items[start : start + self.batch])
            vectors.append(F.normalize(rows.float(), dim=-1).cpu().numpy())
        return np.concatenate(vectors)


def encoder_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ready(module: Any) -> Any:
    """The module on its device, in evaluation mode, without gradients.

    On a CPU in single precision, for half precision is slow there; on a GPU as it was published.
    """
    device = encoder_device()
    if device.type == "cpu":
        module = module.float()
    return module.to(device).eval().requires_grad_(False)


def load_whole(model_class: Any, folder: Path) -> Any:
    """A `transformers` model with all of its weights from a folder, and no code from there.

    `RefuseToStartError` when weights are missing: the library would draw random ones instead.
    """
    return ready(load_weights(model_class, folder, dtype="auto"))


def _place(source: Path, target: Path, shared: bool) -> None:
    if shared:
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)
