"""The trie engine: the query engine over a trie and ranking embeddings in memory.

`TrieEngine` answers whatever encodes and decodes; `ModelEngine` is that with a trained checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.decoding.beam import TextDecodingEngine
from model.decoding.decoder import Decoder
from model.decoding.export import ensure_export
from model.decoding.vllm import VllmDecoder
from model.network.checkpoint import Checkpoint
from model.network.encoder import Encoder
from model.network.query_head import QueryHeadEncoder
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.search import (
    SearchIndex,
    SearchResult,
    search,
    search_embedded,
    search_exact,
    search_paper,
)
from model.retrieval.trie import Trie
from model.training.vector_set import picture_as_text
from schemas.identifiers import IdentifierShape
from schemas.records import BoolArray, FloatArray, HalfArray, IntArray
from schemas.settings import RetrievalSettings
from workers.query.engine import RankedImages
from workers.query.gallery import Gallery
from workers.repository.follower import Changes, EmbeddingRows, PostingRows

# The folder of vLLM's exports, in the folder of files that may be lost.
EXPORTS = "exports"


def export_name(generation: int) -> str:
    """Name the export of a generation."""
    return f"generation-{generation}"


class TrieEngine:
    """A `QueryEngine` over a trie and a gallery in memory. Starts empty; it closes the gallery."""

    def __init__(
        self,
        generation: int,
        shape: IdentifierShape,
        encoder: Encoder,
        decoding: TextDecodingEngine[Any],
        gallery: Gallery,
        device: torch.device | None = None,
        guided: bool = False,
    ) -> None:
        """`device` is where the decoding engine keeps its tensors; None is the CPU.

        `guided`: whether what is below a prefix has a say in which beams are kept.
        """
        self.generation = generation
        self.shape = shape
        self.encoder = encoder
        self.decoding = decoding
        self.gallery = gallery
        self.trie = Trie(shape, device)
        self.means = PrefixMeans(shape, encoder.width) if guided else None
        self._posted: BoolArray = np.zeros(0, dtype=np.bool_)
        """Whether the trie was given the postings of each slot."""

    @property
    def images(self) -> int:
        """Searchable images."""
        return self.trie.images

    @property
    def occupied_leaves(self) -> int:
        """Leaves that hold at least one image."""
        return self.trie.branches.leaves

    @property
    def accelerated(self) -> bool:
        """Whether vLLM decodes."""
        return isinstance(self.decoding, VllmDecoder) and self.decoding.running

    def add_embeddings(self, rows: EmbeddingRows) -> None:
        """Take a chunk of ranking embeddings, before the postings that need them."""
        self.gallery.add(rows.image_keys, rows.embeddings)

    def apply(self, changes: Changes) -> IntArray:
        """Bring trie and embeddings up to date; returns the keys that became searchable."""
        # Deletions first: a key never comes back, and a new version has a key of its own.
        if len(changes.deleted):
            slots = self.gallery.slots(changes.deleted)
            self._delete(slots[slots >= 0].tolist())
        if len(changes.embeddings):
            self.add_embeddings(changes.embeddings)
        self._insert(changes.postings, changes.deleted)
        return np.setdiff1d(changes.embeddings.image_keys, changes.deleted)

    def answer(
        self, texts: Sequence[str], count: int, settings: RetrievalSettings
    ) -> list[RankedImages]:
        """Find the `count` best images of each text by the fused score."""
        return self._ranked(search(self._index(), texts, count, settings))

    def answer_vectors(
        self, texts: Sequence[str], vectors: FloatArray, count: int, settings: RetrievalSettings
    ) -> list[RankedImages]:
        """The same for texts whose vectors (B, D) are known."""
        return self._ranked(search_embedded(self._index(), texts, vectors, count, settings))

    def query_vectors(self, texts: Sequence[str], image_keys: Sequence[int]) -> FloatArray:
        """(B, D) vectors of texts; where a text is empty, of the stored image in a text's place."""
        vectors = self.encoder.embed_texts(texts)
        for position, (text, key) in enumerate(zip(texts, image_keys, strict=True)):
            slot = int(self.gallery.slots(np.array([key]))[0])
            if not text and slot >= 0:
                vectors[position] = self._as_text(self.gallery.embeddings[slot], key)
        return vectors

    def _as_text(self, picture: HalfArray, image_key: int) -> FloatArray:
        """The vector (D,) of a text that a picture might have; here the picture's own."""
        return picture.astype(np.float32)

    def answer_paper(
        self, texts: Sequence[str], count: int, settings: RetrievalSettings
    ) -> list[RankedImages]:
        """Find images in the paper's own mode: five tokens, ranked by their probability."""
        return self._ranked(search_paper(self._index(), texts, count, settings))

    def answer_exact(self, queries: FloatArray, count: int) -> list[RankedImages]:
        """Exact dense search over the embeddings with unit query vectors (B, D): the yardstick."""
        return self._ranked(search_exact(self.trie, self.gallery.embeddings, queries, count))

    def newest(self, count: int) -> IntArray:
        """Return the keys of the `count` images stored last."""
        return self.gallery.newest(count)

    def close(self) -> None:
        """Free the embeddings' file and vLLM's memory."""
        self.gallery.close()
        if isinstance(self.decoding, VllmDecoder):
            self.decoding.close()

    def _index(self) -> SearchIndex:
        # Made for each search: the view of the embeddings changes when the gallery grows.
        return SearchIndex(
            self.decoding, self.encoder, self.trie, self.gallery.embeddings, self.means
        )

    def _ranked(self, results: Sequence[SearchResult]) -> list[RankedImages]:
        ranked = []
        for result in results:
            keys = self.gallery.keys(result.slots)
            ranked.append(RankedImages(keys, result.scores, result.candidates, result.leaves))
        return ranked

    def _insert(self, postings: PostingRows, deleted: IntArray) -> None:
        slots = self.gallery.slots(postings.image_keys)
        # An image deleted in the same batch has no embedding, or one that must not be found.
        kept = (slots >= 0) & ~np.isin(postings.image_keys, deleted)
        self._grow_posted()
        # All postings of an image are written at once, so one that has some has them all: read
        # twice, say after a restore, they count once.
        kept[kept] = ~self._posted[slots[kept]]
        self._posted[slots[kept]] = True
        self.trie.insert(
            postings.leaves[kept], slots[kept], postings.weights[kept], postings.suffixes[kept]
        )

        if self.means is not None:
            vectors = self.gallery.embeddings[slots[kept]].astype(np.float32)
            self.means.add(postings.leaves[kept], vectors)

    def _delete(self, slots: Sequence[int]) -> None:
        if self.means is not None:
            leaves, posted_slots = self.trie.posted(slots)
            vectors = self.gallery.embeddings[posted_slots].astype(np.float32)
            self.means.add(leaves, vectors, sign=-1)
        self.trie.delete(slots)

    def _grow_posted(self) -> None:
        missing = self.gallery.size - len(self._posted)
        if missing > 0:
            # Doubled, so that adding N images copies at most a few times N flags.
            grown = np.zeros(max(missing, len(self._posted)), dtype=np.bool_)
            self._posted = np.concatenate([self._posted, grown])


class ModelEngine(TrieEngine):
    """The engine of a trained checkpoint."""

    def __init__(
        self,
        generation: int,
        checkpoint: Checkpoint,
        decoder: Decoder,
        decoding: TextDecodingEngine[Any],
        gallery: Gallery,
    ) -> None:
        """`decoder` is the checkpoint's; `decoding` reads queries, and is the same or vLLM's."""
        shape = checkpoint.sigma.profile.shape
        head = checkpoint.sigma.query_head
        encoder = checkpoint.encoder
        if head is not None:
            encoder = QueryHeadEncoder(checkpoint.sigma, head)
        # A model that reads vectors has learnt from few pictures, and often from no text.
        guided = checkpoint.sigma.projector is not None
        super().__init__(generation, shape, encoder, decoding, gallery, decoder.device, guided)
        self.checkpoint = checkpoint
        self.decoder = decoder

    @classmethod
    def open(
        cls, generation: int, checkpoint: Checkpoint, folder: Path, *, engine: str = "torch"
    ) -> "ModelEngine":
        """Open an empty engine. `folder` is for files that may be lost.

        `engine` decodes queries, "torch" or "vllm"; vLLM reads an export of the checkpoint, which
        is made once.
        """
        # vLLM shares the decoder too: it scores with it while vLLM is not running.
        decoder = Decoder(checkpoint.sigma)
        decoding: TextDecodingEngine[Any] = decoder
        if engine == "vllm":
            export = ensure_export(decoder.sigma, folder / EXPORTS, export_name(generation))
            decoding = VllmDecoder.start(decoder, export)
        return cls(generation, checkpoint, decoder, decoding, Gallery.open(folder))

    def _as_text(self, picture: HalfArray, image_key: int) -> FloatArray:
        """The vector (D,) of a picture with the noise that stood for texts in training."""
        projector = self.decoder.sigma.projector
        if projector is None:
            return super()._as_text(picture, image_key)
        return picture_as_text(projector, picture.astype(np.float32), image_key)
