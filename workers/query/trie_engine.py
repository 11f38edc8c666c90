"""The trie engine: the query engine over a trie and ranking embeddings in memory.

It answers whatever encodes and decodes; `workers.query.model_engine` is that with a checkpoint.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from model.decoding.beam import TextDecodingEngine
from model.decoding.vllm import VllmDecoder
from model.network.encoder import Encoder
from model.network.query_head import QueryHeadEncoder
from model.network.querybank import Querybank
from model.network.sketch import Sketch
from model.retrieval.filtered_search import (
    FilteredQuery,
    rank_all,
    search_filtered,
    search_paper_filtered,
)
from model.retrieval.filtered_trie import FilteredTrie, FilterTables
from model.retrieval.guidance import Guidance
from model.retrieval.hubness import HubnessBySlot
from model.retrieval.search import (
    SearchIndex,
    SearchResult,
    search,
    search_embedded,
    search_exact,
    search_paper,
    search_read,
)
from model.retrieval.trie import Trie
from schemas.errors import UsageError
from schemas.filters import Filter
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, HalfArray, IntArray
from schemas.retrieval_settings import RetrievalSettings
from workers.query.engine import QueryPicture, RankedImages
from workers.query.gallery import Gallery
from workers.query.generation_index import GenerationIndex
from workers.repository.follower import Changes

# Filters whose allowed images are remembered until the next change: a byte for each slot.
FILTERS_KEPT = 8

# Images up to which a search begins with the beams of the settings.
USUAL_RESULTS = 110

# Beams of a query that wants thousands of images: a second of work on two cores, and as many leaves
# as hold the most that can be asked for.
MOST_BEAMS = 2048


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
        guidance: Guidance | None = None,
        querybank: Querybank | None = None,
        sketch: Sketch | None = None,
    ) -> None:
        """`device` is where the decoding engine keeps its tensors; None is the CPU.

        `guidance`: how what is below a prefix has a say in which beams are kept; None for none.
        `querybank`: what images near to any text lose in the ranking; None for nothing.
        `sketch`: what tells images of a leaf apart before their embeddings are read.
        """
        self.generation = generation
        self.shape = shape
        self.encoder = encoder
        self.decoding = decoding
        self.guidance = guidance
        guided = guidance is not None
        hubness = None if querybank is None else HubnessBySlot(querybank, encoder.scale)
        # Without a guide nothing says how much a leaf's images are believed in.
        own_sketch = sketch if guided else None
        self.index = GenerationIndex(
            shape, encoder.width, gallery, device, guided, hubness, own_sketch
        )
        self._tables = FilterTables(shape, device)
        self._filtered: OrderedDict[Filter, FilteredTrie] = OrderedDict()
        """What the latest filters left of the trie as it is, the last one used at the end."""
        self._searchable: IntArray | None = None
        """(N,) slots of all images, once they were asked for since the last change."""

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

    @property
    def trie(self) -> Trie:
        """Of the index."""
        return self.index.trie

    @property
    def gallery(self) -> Gallery:
        """Of the index."""
        return self.index.gallery

    @property
    def eager_searches(self) -> Mapping[str, int]:
        """See `QueryEngine`; an engine without a model has no graphs."""
        return {}

    def apply(self, changes: Changes) -> IntArray:
        """Bring the index up to date; returns the keys that became searchable."""
        added = self.index.apply(changes)
        self._filtered.clear()
        self._searchable = None
        return added

    def answer(
        self,
        texts: Sequence[str],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        """Find the `count` best images of each text by the fused score."""

        def found(index: SearchIndex, wider: RetrievalSettings) -> list[SearchResult]:
            return search(index, texts, count, wider)

        if wanted is None:
            return self._ranked(self._deep(self._index(count), found, count, settings))
        asked = FilteredQuery(found, lambda: self.encoder.embed_texts(texts), count)
        return self._ranked(
            search_filtered(self._index(count), self.allowed(wanted), asked, settings)
        )

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

    def answer_pictures(
        self,
        pictures: Sequence[QueryPicture],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        """See `QueryEngine`. Vectors of stored pictures are known, those of others are computed."""
        vectors = np.stack([self._picture_vector(picture) for picture in pictures])
        decoding, prompt = self._read_pictures(pictures, vectors)
        # Texts of a bank say nothing of how near pictures are to each other.
        own_index = replace(self._index(count), decoding=decoding, hubness=None)

        def found(index: SearchIndex, wider: RetrievalSettings) -> list[SearchResult]:
            return search_read(index, prompt, vectors, count, wider)

        if wanted is None:
            return self._ranked(self._deep(own_index, found, count, settings))
        asked = FilteredQuery(found, lambda: vectors, count)
        return self._ranked(search_filtered(own_index, self.allowed(wanted), asked, settings))

    def explain(self, codes: Sequence[int]) -> str | None:
        """See `QueryEngine`; an engine without a model knows no words."""
        return None

    def answer_paper(
        self,
        texts: Sequence[str],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        """Find images in the paper's own mode: five tokens, ranked by their probability."""

        def found(index: SearchIndex, wider: RetrievalSettings) -> list[SearchResult]:
            return search_paper(index, texts, count, wider)

        if wanted is None:
            return self._ranked(self._deep(self._index(), found, count, settings))
        return self._ranked(
            search_paper_filtered(self._index(), self.allowed(wanted), texts, count, settings)
        )

    def answer_exact(
        self, queries: FloatArray, count: int, wanted: Filter | None = None
    ) -> list[RankedImages]:
        """Exact dense search over the embeddings with unit query vectors (B, D): the yardstick."""
        trie = self.trie if wanted is None else self.allowed(wanted)
        return self._ranked(search_exact(trie, self.gallery.embeddings, queries, count))

    def answer_all(self, queries: FloatArray, count: int) -> list[RankedImages]:
        """The same, but that images near to any text lose what they lose in `answer`."""
        return self._ranked(rank_all(self._index(count), queries, count))

    def allowed(self, wanted: Filter) -> FilteredTrie:
        """The images that a filter allows, until the next change."""
        if wanted in self._filtered:
            self._filtered.move_to_end(wanted)
            return self._filtered[wanted]
        if self._searchable is None:
            self._searchable = self.trie.searchable_slots()
        allowed = self.index.metadata.allowed(wanted, self.gallery.size)[self._searchable]
        filtered = FilteredTrie(self.trie, self._searchable[allowed], self._tables)
        self._filtered[wanted] = filtered
        if len(self._filtered) > FILTERS_KEPT:
            self._filtered.popitem(last=False)
        return filtered

    def prepare_pictures(self) -> None:
        """See `QueryEngine`; an engine without a model reads none."""

    def newest(self, count: int) -> IntArray:
        """Return the keys of the `count` images stored last."""
        return self.gallery.newest(count)

    def close(self) -> None:
        """Free the embeddings' file and vLLM's memory."""
        self.index.close()
        if isinstance(self.decoding, VllmDecoder):
            self.decoding.close()

    def _index(self, count: int = 0) -> SearchIndex:
        """The index for a search of `count` images."""
        # Made for each search: the view of the embeddings changes when the gallery grows.
        index = SearchIndex(
            self.decoding,
            self.encoder,
            self.trie,
            self.gallery.embeddings,
            prefetch=self.gallery.prefetch,
            sketches=self.index.sketches,
            hubness=self.index.hubness,
        )
        if self.guidance is None:
            return index
        guidance = replace(self.guidance, least=max(self.guidance.least, count))
        return replace(index, means=self.index.means, guidance=guidance)

    def _picture_vector(self, picture: QueryPicture) -> FloatArray:
        """The (D,) unit vector of a picture."""
        if picture.image_key is not None:
            slot = int(self.gallery.slots(np.array([picture.image_key]))[0])
            if slot >= 0:
                return self.gallery.embeddings[slot].astype(np.float32)
        if picture.pixels is None:
            raise UsageError(
                f"the image has no vector in generation {self.generation}, and the store no picture"
                " of it; ingest it again"
            )
        if isinstance(self.encoder, QueryHeadEncoder):
            raise UsageError(
                f"generation {self.generation} answers without its encoder, so only pictures that"
                " are stored can be asked for; name one by its image_id"
            )
        vector: FloatArray = self.encoder.embed_images([picture.pixels])[0]
        return vector

    def _read_pictures(
        self, pictures: Sequence[QueryPicture], vectors: FloatArray
    ) -> tuple[TextDecodingEngine[Any], Any]:
        """What decodes for pictures with (B, D) vectors, and their prompt read by it."""
        return self.decoding, self.decoding.read_texts([""] * len(pictures), vectors)

    def _deep(
        self,
        index: SearchIndex,
        found: Callable[[SearchIndex, RetrievalSettings], list[SearchResult]],
        count: int,
        settings: RetrievalSettings,
    ) -> list[SearchResult]:
        """Search wider and wider, in beams and in what is ranked, until `count` images are found.

        Where many are wanted, the first search is as wide as they need on average.
        """
        if count > USUAL_RESULTS and self.occupied_leaves:
            leaf_images = max(1, self.images // self.occupied_leaves)
            settings = replace(
                settings,
                beams=min(MOST_BEAMS, max(settings.beams, count // leaf_images)),
                candidates=max(settings.candidates, count),
            )
        widest = min(MOST_BEAMS, self.occupied_leaves)
        while True:
            results = found(index, settings)
            fewest = min((len(result.slots) for result in results), default=0)
            if fewest >= min(count, self.images) or settings.beams >= widest:
                return results
            settings = replace(
                settings, beams=min(widest, 2 * settings.beams), candidates=2 * settings.candidates
            )
            index = replace(index, guidance=index.guidance.doubled())

    def _ranked(self, results: Sequence[SearchResult]) -> list[RankedImages]:
        ranked = []
        for result in results:
            keys = self.gallery.keys(result.slots)
            ranked.append(
                RankedImages(
                    keys,
                    result.scores,
                    result.candidates,
                    result.leaves,
                    result.leaf_scores,
                    result.cosines,
                )
            )
        return ranked
