"""The vector set: what a model that reads vectors learns from, and how queries are made of it.

Queries are not known when a model is trained, and without captions nothing like them is. A
picture's vector with noise stands for one: it lies as far from pictures as texts do. Any picture
near to it would be a good answer, so one of them takes the place of its own in half of the steps:
the decoder learns what exact search would find, for vectors that lie between pictures.

Letters in shapes: N images, M vectors, D width of the encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.encoder import Encoder
from model.network.prompts import PromptBuilder, TrainingExample
from model.network.vector_reading import VectorProjector
from schemas.records import FloatArray, IntArray

# Share of the steps in which a near picture's identifier is learnt.
NEAR_SHARE = 0.5

# Near pictures that may take the place; the first is as likely as the second and third together.
_NEAR = 10

# Pictures among which near ones are looked for: in each step they are compared with its vectors.
_MOST_COMPARED = 20_000

# Pairs of vectors that a distance is measured on.
_SAMPLE = 1000

# Lengths of noise that are tried.
_NOISES = tuple(np.arange(0.25, 6.01, 0.25).tolist())


@dataclass(frozen=True, slots=True)
class VectorSet:
    """Placed vectors, those of the N images first and then those of captions in corpus order."""

    placed: Tensor
    """(M, D)"""
    images: Tensor
    """(N, D) the encoder's own vectors of the images."""
    text_mean: Tensor
    """(D,)"""
    noise: float
    """Length of the noise on pictures that stand for queries."""

    @classmethod
    def of(
        cls, projector: VectorProjector, encoder: Encoder, images: FloatArray, texts: Sequence[str]
    ) -> "VectorSet":
        """The set of (N, D) vectors of images, and of captions."""
        placed = [projector.placed_images(images)]
        placed.append(projector.placed_texts(encoder.embed_texts(texts)))
        return cls(
            torch.cat(placed).cpu(),
            torch.from_numpy(images),
            projector.text_mean.cpu(),
            projector.reading.noise,
        )

    def draw(
        self,
        examples: Sequence[TrainingExample],
        identifiers: IntArray,
        prompts: PromptBuilder,
        seed: Sequence[int],
    ) -> tuple[list[TrainingExample], Tensor | None]:
        """Examples of a batch as one step sees them, and the vectors (n, D) of those that have one.

        `identifiers` (N, 5). The same seed draws the same, whichever other examples are there.
        """
        vectors: list[Tensor] = []
        chances: list[tuple[int, float]] = []
        for place, example in enumerate(examples):
            if example.vector is None:
                continue
            rng = np.random.default_rng((*seed, example.vector))
            vector = self.placed[example.vector]
            if example.is_query and example.vector < len(self.images):
                vector = noisy(vector, self.noise, rng)
            vectors.append(vector)
            if example.is_query and rng.random() < NEAR_SHARE:
                chances.append((place, rng.random()))
        if not vectors:
            return list(examples), None
        drawn = list(examples)
        stacked = torch.stack(vectors)
        owners = [place for place, example in enumerate(examples) if example.vector is not None]
        near = self._near(stacked[[owners.index(place) for place, _ in chances]])
        for (place, chance), rows in zip(chances, near, strict=True):
            row = rows[_rank(chance, len(rows))]
            drawn[place] = prompts.with_identifier(examples[place], identifiers[row])
        return drawn, stacked

    def _near(self, placed: Tensor) -> list[list[int]]:
        """For each of (n, D) placed queries the rows of the nearest images, nearest first."""
        queries = F.normalize(placed + self.text_mean, dim=-1)
        compared = self.images[:: -(-len(self.images) // _MOST_COMPARED)]
        step = -(-len(self.images) // _MOST_COMPARED)
        best = (queries @ compared.T).topk(min(_NEAR, len(compared)), dim=1).indices
        rows: list[list[int]] = (best * step).tolist()
        return rows


def _rank(chance: float, count: int) -> int:
    """A rank below `count`, drawn by a number in 0..1; likely as 1 / (rank + 1)."""
    weights = 1 / np.arange(1, count + 1)
    return int(np.searchsorted(np.cumsum(weights) / weights.sum(), chance))


def noisy(vector: Tensor, noise: float, rng: np.random.Generator) -> Tensor:
    """A unit vector (D,) with noise of that length in a random direction, at unit length again."""
    drawn = rng.standard_normal(len(vector), np.float32) * np.float32(noise / len(vector) ** 0.5)
    return F.normalize(vector + torch.from_numpy(drawn).to(vector), dim=-1)


def picture_as_text(projector: VectorProjector, vector: FloatArray, seed: int) -> FloatArray:
    """(D,) what is asked for a picture without captions: its vector (D,) as if a text had it.

    The same seed gives the same noise.
    """
    placed = projector.placed_images(vector[np.newaxis])[0]
    # A stream of random numbers apart from that of training.
    blurred = noisy(placed, projector.reading.noise, np.random.default_rng((7, seed)))
    asked: FloatArray = projector.as_texts(blurred.unsqueeze(0))[0]
    return asked


def noise_like(images: FloatArray, texts: FloatArray, seed: int) -> float:
    """The noise with which pictures lie as far from other pictures as texts do.

    `images` (N, D) and `texts` (B, D) are placed. Nearness is the mean cosine to the ten nearest
    images. Nothing is trained to find it.
    """
    rng = np.random.default_rng((seed, 9))
    compared = images[rng.permutation(len(images))[: 4 * _SAMPLE]]
    wanted = _nearness(texts[rng.permutation(len(texts))[:_SAMPLE]], compared)
    chosen = compared[:_SAMPLE]
    direction = rng.standard_normal(chosen.shape).astype(np.float32) / chosen.shape[1] ** 0.5
    # Less near with more noise, so the last one that is near enough.
    best = _NOISES[0]
    for noise in _NOISES:
        if _nearness(chosen + np.float32(noise) * direction, compared) < wanted:
            break
        best = noise
    return best


def _nearness(queries: FloatArray, images: FloatArray) -> float:
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True).clip(1e-6)
    cosines = unit @ images.T
    near = min(_NEAR, images.shape[0])
    return float(np.partition(cosines, -near, axis=1)[:, -near:].mean())
