"""The image assigner: the interface between a model and whoever appends to a trie. No torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from schemas.errors import RefuseToStartError
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray
from schemas.retrieval_settings import RetrievalSettings
from workers.generations.inferred import Inferred
from workers.repository.generations import Generation

# Pixels of the side of the picture that a model is tried with: any model takes it.
_PROBE_SIDE = 224


class ImageAssigner(Protocol):
    """The model of one generation, as the index worker and catching up use it."""

    @property
    def shape(self) -> IdentifierShape:
        """Codes of each level, and suffixes of a leaf."""
        ...

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        """Leaves and ranking embedding of each picture, (H, W, 3) uint8, in the order given."""
        ...


def is_working(assigner: ImageAssigner) -> bool:
    """Tell whether a model answers for a plain grey picture."""
    grey = np.full((_PROBE_SIDE, _PROBE_SIDE, 3), 128, np.uint8)
    try:
        return len(assigner.infer([grey])) == 1
    except Exception:
        return False


# Loads the model of a generation; takes seconds.
LoadAssigner = Callable[[Generation], ImageAssigner]


def assigner_loader(checkpoints: Path, settings: RetrievalSettings) -> LoadAssigner:
    """A function that loads a generation's trained model from the folder of all checkpoints.

    `settings`: how many leaves an image gets, and what the codebook has to say.
    """

    def load(generation: Generation) -> ImageAssigner:
        # Imported here: a rollback of a complete generation needs no model and must not wait for
        # PyTorch.
        from workers.generations.model_assigner import ModelAssigner

        assigner = ModelAssigner.load(checkpoints, generation, settings)
        # Weights of a version without digests may be damaged and load all the same.
        if not is_working(assigner):
            raise RefuseToStartError(
                f"the model of generation {generation.id} gives no finite numbers; restore its"
                f" folder {checkpoints / generation.folder} from a copy or train again"
            )
        return assigner

    return load
