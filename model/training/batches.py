"""Batches: the sequences of a step with their pictures, and how they are run in parts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from model.network.inputs import ImagePatches, ImagePreprocessor
from model.network.prompts import TrainingExample
from schemas.records import ByteArray


@dataclass(frozen=True, slots=True)
class StageBatch:
    """The sequences that a process learns in one step."""

    examples: Sequence[TrainingExample]
    patches: ImagePatches | None = None
    """Of the examples with an image, in order; None without any, or where visual tokens are known.
    """
    vectors: Tensor | None = None
    """(n, D) of the examples with a vector, in order."""

    def parts(self, size: int) -> list["StageBatch"]:
        """The batch in parts of at most `size` sequences; 0 leaves it whole."""
        count = len(self.examples)
        if not size or count <= size:
            return [self]
        places = [*range(0, count, size), count]
        return [self._part(start, stop) for start, stop in pairwise(places)]

    def _part(self, start: int, stop: int) -> "StageBatch":
        images = [example.image is not None for example in self.examples]
        vectors = [example.vector is not None for example in self.examples]
        own_patches = None
        if self.patches is not None:
            own_patches = _images(self.patches, sum(images[:start]), sum(images[:stop]))
        own_vectors = None
        if self.vectors is not None:
            own_vectors = self.vectors[sum(vectors[:start]) : sum(vectors[:stop])]
        return replace(
            self,
            examples=self.examples[start:stop],
            patches=own_patches,
            vectors=own_vectors if own_vectors is not None and len(own_vectors) else None,
        )


def _images(patches: ImagePatches, start: int, stop: int) -> ImagePatches | None:
    """The patches of images `start` to `stop`; None for none."""
    if start == stop:
        return None
    counts = patches.grid.prod(1)
    before = int(counts[:start].sum())
    own = int(counts[start:stop].sum())
    return ImagePatches(patches.patches[before : before + own], patches.grid[start:stop])


@dataclass(frozen=True, slots=True)
class Collator:
    """Makes batches, where the Trainer wants it in processes of their own."""

    images: Sequence[ByteArray]
    preprocessor: ImagePreprocessor
    prepares: bool
    """False where visual tokens are known and nobody reads pixels."""

    def __call__(self, examples: list[TrainingExample]) -> dict[str, StageBatch]:
        """The Trainer insists on a dictionary."""
        rows = [example.image for example in examples if example.image is not None]
        patches = None
        if rows and self.prepares:
            patches = self.preprocessor([self.images[row] for row in rows])
        return {"batch": StageBatch(examples, patches)}


def counts_of(batch: StageBatch) -> Tensor:
    """(5,) float32: tokens, soft labels and queries' vectors that a batch is to predict; its images
    and its vectors."""
    examples = batch.examples
    # The first token of a row is predicted by nothing.
    tokens = sum(len(each.tokens) - max(1, each.prompt_length) for each in examples)
    judged = (each.identifier_span is not None for each in examples if each.soft_label is not None)
    queries = sum(each.query is not None for each in examples)
    images = sum(each.image is not None for each in examples)
    vectors = sum(each.vector is not None for each in examples)
    return torch.tensor([tokens, sum(judged), queries, images, vectors], dtype=torch.float32)
