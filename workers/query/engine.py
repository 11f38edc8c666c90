"""The query engine: one generation ready to answer. The decode thread owns it.

`QueryEngine` is what the server and the searcher call; the engines are in
`workers.query.trie_engine` and `workers.query.model_engine`. Imports no torch, so that a query
worker listens at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from schemas.filters import Filter
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray, FloatArray, IntArray
from schemas.retrieval_settings import RetrievalSettings
from workers.repository.follower import Changes

if TYPE_CHECKING:
    from model.network.encoder import Encoder


@dataclass(frozen=True, slots=True, eq=False)
class RankedImages:
    """The images of one query, best first."""

    image_keys: IntArray
    """(k,)"""
    scores: FloatArray
    """(k,)"""
    candidates: int
    """Images that were scored, k of them returned."""
    leaves: IntArray
    """(W,) leaves that were decoded, best first."""
    leaf_scores: FloatArray
    """(W,) log-probabilities of the leaves."""
    cosines: FloatArray | None = None
    """(k,) of each image with the query's vector; None where images are not compared by it."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryPicture:
    """A picture to which similar ones are wanted."""

    image_key: int | None
    """Of a stored image, which is left out of the answer; None for a picture that is not stored."""
    pixels: ByteArray | None
    """(H, W, 3); None where the store has lost them."""


class QueryEngine(Protocol):
    """Answers queries of one generation and follows its changes. For one thread."""

    @property
    def generation(self) -> int:
        """The generation's number."""
        ...

    @property
    def shape(self) -> IdentifierShape:
        """Codes of each level, and suffixes of a leaf."""
        ...

    @property
    def encoder(self) -> "Encoder":
        """What embeds texts into the space of the ranking embeddings."""
        ...

    @property
    def images(self) -> int:
        """Searchable images."""
        ...

    @property
    def occupied_leaves(self) -> int:
        """Leaves that hold at least one image."""
        ...

    @property
    def accelerated(self) -> bool:
        """Whether vLLM decodes."""
        ...

    @property
    def eager_searches(self) -> Mapping[str, int]:
        """Searches so far that no CUDA graph answered, by the reason; none where there are none."""
        ...

    def apply(self, changes: Changes) -> IntArray:
        """Bring the index up to date; returns the image keys that became searchable."""
        ...

    def answer(
        self,
        texts: Sequence[str],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        """Find the `count` best images of each text by the fused score.

        With a filter, of those that it allows: `count` of them, or all there are.
        """
        ...

    def answer_vectors(
        self, texts: Sequence[str], vectors: FloatArray, count: int, settings: RetrievalSettings
    ) -> list[RankedImages]:
        """The same for texts whose vectors (B, D) are known."""
        ...

    def query_vectors(self, texts: Sequence[str], image_keys: Sequence[int]) -> FloatArray:
        """(B, D) vectors of texts; where a text is empty, of the stored image in a text's place."""
        ...

    def answer_pictures(
        self,
        pictures: Sequence[QueryPicture],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        """Find the `count` images of each picture that are most similar; `UsageError` if it cannot.

        They come through the same beams as those of a text, and are ranked by their cosine with
        the picture's vector.
        """
        ...

    def prepare_pictures(self) -> None:
        """Load what reading a picture takes, which may be seconds; later calls do nothing.

        For any thread: those that wait for another answer need not wait for this.
        """
        ...

    def explain(self, codes: Sequence[int]) -> str | None:
        """What the first codes of an identifier stand for, in words; None if it has learnt none."""
        ...

    def answer_paper(
        self,
        texts: Sequence[str],
        count: int,
        settings: RetrievalSettings,
        wanted: Filter | None = None,
    ) -> list[RankedImages]:
        """Find images in the paper's own mode: five tokens, ranked by their probability."""
        ...

    def answer_exact(self, queries: FloatArray, count: int) -> list[RankedImages]:
        """Exact dense search with unit query vectors (B, D): the yardstick."""
        ...

    def newest(self, count: int) -> IntArray:
        """Return the keys of the `count` images stored last."""
        ...

    def close(self) -> None:
        """Free files and memory."""
        ...
