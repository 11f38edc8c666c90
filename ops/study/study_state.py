"""The state of a study: one policy's index, and what its monitors know, session by session."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from model.drift.monitors import DriftReference
from model.network.checkpoint import load_checkpoint
from model.network.profiles import Profile
from ops.study.learning import StudyGeneration
from ops.study.study_corpus import StudyCorpus
from ops.study.study_index import StudyIndex
from schemas.records import BoolArray, IntArray
from schemas.retrieval_settings import RetrievalSettings


@dataclass(slots=True, eq=False)
class StudyState:
    """One policy's index between two sessions. Changed by each session."""

    corpus: StudyCorpus
    profile: Profile
    base: Path
    """Where a full training begins."""
    scratch: Path
    """Folder for files of the index that may be lost."""
    settings: RetrievalSettings
    index: StudyIndex
    trained: BoolArray
    """(M,) images that the model was trained on."""
    alive: BoolArray
    """(M,) images that arrived and are not deleted."""
    fresh: list[int] = field(default_factory=list)
    """Arrivals since the last upkeep, newest last: what the monitors look at."""
    reference: DriftReference | None = None
    """What is normal for the generation; None until the monitors first look."""
    first_session: int = 1
    """Session in which the generation began to take arrivals."""
    second_refresh: int | None = None
    """Session of the second refresh after an alarm."""

    @classmethod
    def begin(
        cls,
        corpus: StudyCorpus,
        profile: Profile,
        base: Path,
        first: Path,
        scratch: Path,
        beams: int,
    ) -> "StudyState":
        """The state before the first session: the first images are posted.

        `first` is the checkpoint trained on them, with which all policies of a seed begin.
        """
        checkpoint = load_checkpoint(first)
        settings = RetrievalSettings(beams=beams)
        numbers = corpus.stream.arrivals(0)
        index = StudyIndex.open(checkpoint, corpus, scratch, settings)
        index.load(numbers, checkpoint.codebook.encode(corpus.embeddings[numbers]))
        # Trained on and alive are the same images at first; later each array changes by itself.
        known = np.zeros(len(corpus.embeddings), dtype=np.bool_)
        known[numbers] = True
        return cls(
            corpus, profile, base, scratch, settings, index, trained=known, alive=known.copy()
        )

    @property
    def seed(self) -> int:
        """The seed of the stream, and of every training."""
        return self.corpus.stream.config.seed

    @property
    def numbers(self) -> IntArray:
        """Numbers of the images alive, ascending."""
        return np.flatnonzero(self.alive).astype(np.int64)

    def delete(self, numbers: IntArray) -> None:
        """Delete images from the index."""
        self.alive[numbers] = False
        self.index.delete(numbers)
        self.fresh = [number for number in self.fresh if self.alive[number]]

    def append(self, numbers: IntArray) -> None:
        """Let the model assign arrivals, and post them."""
        self.index.append(numbers)
        self.alive[numbers] = True
        self.fresh += numbers.tolist()

    def replace_generation(self, generation: StudyGeneration) -> None:
        """Post all images of a new generation, and drop the index of the old one."""
        index = StudyIndex.open(generation.checkpoint, self.corpus, self.scratch, self.settings)
        index.load(generation.numbers, generation.codes)
        self.index.close()
        self.index = index
        # What arrived before was trained on or re-assigned: it says nothing of the new generation.
        self.fresh.clear()
