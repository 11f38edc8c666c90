"""The engine: one generation ready to answer, its model, trie and ranking embeddings in memory. Owned by one thread."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.decoding.beam import TextDecodingEngine
from model.decoding.decoder import Decoder
from model.decoding.export import ensure_export
from model.decoding.vllm import VllmDecoder
from model.network.checkpoint import Checkpoint
from model.retrieval.search import SearchIndex, SearchResult, search, search_exact, search_paper
from model.retrieval.trie import Trie
from schemas.records import FloatArray, IntArray
from schemas.settings import RetrievalSettings
from workers.query.gallery import Gallery
from workers.repository.follower import Changes, EmbeddingRows, PostingRows

EXPORTS = "exports"
"""The folder of vLLM's exports, below an engine's folder."""


def export_name(generation: int) -> str:
    """What the export of a generation is called."""
    return f"generation-{generation}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Images of one query, best first; `candidates` images were scored, `leaves` were decoded."""

    image_keys: IntArray
    scores: FloatArray
    candidates: int
    leaves: IntArray


class Engine:
    """Answers queries of one generation. `folder` is for files that may be lost."""

    def __init__(
        self, generation: int, checkpoint: Checkpoint, folder: Path, *, engine: str = "torch"
    ) -> None:
        """`engine` decodes queries, "torch" or "vllm"; vLLM reads an export of the checkpoint, made once."""
        self.generation = generation
        self.checkpoint = checkpoint
        self.encoder = checkpoint.encoder
        self.decoder = Decoder(checkpoint.sigma)
        self._vllm = _vllm(self.decoder, generation, folder) if engine == "vllm" else None
        self.scorer: TextDecodingEngine[Any] = self._vllm or self.decoder
        self.shape = checkpoint.sigma.profile.shape
        self.trie = Trie(self.shape, self.decoder.device)
        self.gallery = Gallery(folder)

    def sink(self, rows: EmbeddingRows) -> None:
        """Take a chunk of ranking embeddings (initial load)."""
        self.gallery.add(rows.image_keys, rows.embeddings)

    def apply(self, changes: Changes) -> IntArray:
        """Bring trie and embeddings up to date; returns the image keys that became searchable."""
        if len(changes.deleted):
            slots = self.gallery.slots(changes.deleted)
            self.trie.delete(slots[slots >= 0].tolist())
        if len(changes.embeddings):
            self.sink(changes.embeddings)
        self._insert(changes.postings, changes.deleted)
        return np.setdiff1d(changes.embeddings.image_keys, changes.deleted)

    def answer(self, texts: Sequence[str], count: int, settings: RetrievalSettings) -> list[Answer]:
        """The `count` best images of each text by the fused score."""
        return self._answers(search(self._index(), texts, count, settings))

    def answer_paper(
        self, texts: Sequence[str], count: int, settings: RetrievalSettings
    ) -> list[Answer]:
        """The paper's own mode: five tokens decoded over primary identifiers, ranked by their probability."""
        return self._answers(search_paper(self._index(), texts, count, settings))

    def answer_exact(self, queries: FloatArray, count: int) -> list[Answer]:
        """Exact dense search over the stored embeddings with unit query vectors (B, D): the yardstick."""
        return self._answers(search_exact(self.trie, self.gallery.embeddings, queries, count))

    @property
    def accelerated(self) -> bool:
        """Whether vLLM decodes."""
        return self._vllm is not None and self._vllm.running

    def close(self) -> None:
        """Free the embeddings' file and vLLM's memory."""
        self.gallery.close()
        if self._vllm is not None:
            self._vllm.close()

    def _index(self) -> SearchIndex:
        return SearchIndex(self.scorer, self.encoder, self.trie, self.gallery.embeddings)

    def _answers(self, results: Sequence[SearchResult]) -> list[Answer]:
        return [
            Answer(self.gallery.keys(result.slots), result.scores, result.candidates, result.leaves)
            for result in results
        ]

    def _insert(self, postings: PostingRows, deleted: IntArray) -> None:
        slots = self.gallery.slots(postings.image_keys)
        # A posting whose image was deleted in the same breath has an embedding no more.
        kept = (slots >= 0) & ~np.isin(postings.image_keys, deleted)
        self.trie.insert(
            postings.leaves[kept], slots[kept], postings.weights[kept], postings.suffixes[kept]
        )


def _vllm(decoder: Decoder, generation: int, folder: Path) -> VllmDecoder:
    return VllmDecoder(
        decoder, ensure_export(decoder.sigma, folder / EXPORTS, export_name(generation))
    )
