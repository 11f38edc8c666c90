"""The searcher: an engine with its database connections, from texts to answers for people."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np

from model.retrieval.relevance import at_least, relevances_of
from schemas.errors import UsageError
from schemas.filters import Filter
from schemas.records import BoolArray, FloatArray, Hit, IntArray, JsonObject
from schemas.relevance import RelevanceCalibration
from schemas.retrieval_settings import RetrievalSettings
from stream.images.store import ImageStore
from workers.query.descriptions import Descriptions
from workers.query.engine import QueryEngine, QueryPicture, RankedImages
from workers.repository.follower import Changes, TrieFollower
from workers.repository.generations import Generation
from workers.repository.stored_images import StoredImage

if TYPE_CHECKING:
    from workers.query.trie_engine import TrieEngine

# How to rank: by the fused score, or as the paper does, by the identifier's probability alone.
Mode = Literal["fused", "paper"]

# Images fetched beyond those asked for, to replace those deleted since the index was updated.
_SPARE = 10

# Leaves that an answer explains itself by, of the hundreds that a deep query reaches.
SHOWN_LEAVES = 100

# Decimals of a score: what float32 can tell apart.
_SCORE_DIGITS = 6

# Decimals of a relevance: a calibration on hundreds of texts knows no more.
_RELEVANCE_DIGITS = 4

_UNCALIBRATED = (
    "generation {} has no calibrated relevance, so min_relevance cannot be met; leave it out, or"
    " train a generation by this version on images with captions"
)

NO_COSINES = "the mode paper compares no image with the text, so min_relevance must be left out"

T = TypeVar("T", bound="TrieEngine")
E_co = TypeVar("E_co", bound=QueryEngine, covariant=True)


@dataclass(frozen=True, slots=True)
class ReachedLeaf:
    """A leaf that a query was decoded to."""

    codes: tuple[int, ...]
    """id1 to id4"""
    log_probability: float


@dataclass(frozen=True, slots=True, eq=False)
class RankedRest:
    """The images of an answer that come after those described, best first."""

    image_keys: IntArray
    """(r,)"""
    scores: FloatArray
    """(r,)"""
    cosines: FloatArray | None
    """(r,)"""

    @classmethod
    def of(cls, ranked: RankedImages) -> "RankedRest":
        """All images of an answer."""
        return cls(ranked.image_keys, ranked.scores, ranked.cosines)

    def behind(self, place: int) -> "RankedRest":
        """What follows the first `place` images."""
        cosines = None if self.cosines is None else self.cosines[place:]
        return RankedRest(self.image_keys[place:], self.scores[place:], cosines)

    def first(self, count: int) -> "RankedRest":
        """The same with at most `count` images."""
        cosines = None if self.cosines is None else self.cosines[:count]
        return RankedRest(self.image_keys[:count], self.scores[:count], cosines)


@dataclass(frozen=True, slots=True)
class AnsweredQuery:
    """One answered query; `captions` and `cosines` are those of each hit."""

    query: str
    generation: int
    hits: tuple[Hit, ...]
    candidates: int
    captions: tuple[tuple[str, ...], ...] = ()
    cosines: tuple[float | None, ...] = ()
    relevances: tuple[float | None, ...] = ()
    """Of each hit, None where they are not calibrated."""
    leaves: tuple[ReachedLeaf, ...] = ()
    """The leaves that were decoded, best first."""
    rest: RankedRest | None = None
    """Where more images were asked for than are described."""

    def first(self, count: int) -> "AnsweredQuery":
        """Return the same answer with at most `count` images."""
        return replace(
            self,
            hits=self.hits[:count],
            captions=self.captions[:count],
            cosines=self.cosines[:count],
            relevances=self.relevances[:count],
        )

    def to_dict(self, took_ms: float) -> JsonObject:
        """Return the JSON shape of the command line and of `POST /v1/query`."""
        results = []
        relevances = self.relevances or (None,) * len(self.hits)
        for hit, captions, relevance in zip(self.hits, self.captions, relevances, strict=True):
            results.append(
                {
                    "rank": hit.rank,
                    "image_id": hit.image_id,
                    "uri": hit.uri,
                    "link": hit.link,
                    "identifier": list(hit.identifier),
                    "score": hit.score,
                    "relevance": relevance,
                    "captions": list(captions),
                    "metadata": dict(hit.metadata),
                }
            )
        return {
            "query": self.query,
            "generation": self.generation,
            "took_ms": round(took_ms, 2),
            "candidates": self.candidates,
            "results": results,
        }


@dataclass(frozen=True, slots=True)
class SnapshotRenewal:
    """How a searcher's index snapshot is renewed, from another thread than its own."""

    is_due: Callable[[int, float, int], bool]
    """Of the images that changed since, the seconds since, and all images."""
    renew: Callable[[], None]
    """Takes as long as loading."""


class Searcher(Generic[E_co]):
    """One generation, loaded and followed. For one thread. Closes its engine and connections."""

    def __init__(
        self,
        generation: Generation,
        engine: E_co,
        descriptions: Descriptions,
        follower: TrieFollower,
        store: ImageStore,
        settings: RetrievalSettings,
        snapshot: SnapshotRenewal | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.generation = generation
        self.descriptions = descriptions
        self.follower = follower
        self.store = store
        self.settings = settings
        self._engine = engine

    @property
    def engine(self) -> E_co:
        """What answers."""
        return self._engine

    def search(
        self,
        texts: Sequence[str],
        count: int,
        mode: Mode = "fused",
        depth: int = 0,
        only: Filter | None = None,
        least: float | None = None,
    ) -> list[AnsweredQuery]:
        """Answer texts that passed `checked_query`, with images that a filter allows.

        `depth` images are ranked where that is more than the `count` that are described. `least`
        leaves out images of a lower relevance; `UsageError` where it is not calibrated.
        """
        calibration = self.generation.config.training.relevance
        if least is not None and calibration is None:
            raise UsageError(_UNCALIBRATED.format(self.generation.id))
        wanted = max(count, depth) + _SPARE
        answer = self.engine.answer_paper if mode == "paper" else self.engine.answer
        ranked = answer(texts, wanted, self.settings, only)
        if least is not None and calibration is not None:
            ranked = [relevant(images, calibration, least) for images in ranked]
        return self._describe(texts, ranked, count, depth, calibration)

    def search_pictures(
        self,
        pictures: Sequence[QueryPicture],
        count: int,
        depth: int = 0,
        only: Filter | None = None,
    ) -> list[AnsweredQuery]:
        """Answer pictures with similar ones. A stored picture is not among its own answer."""
        wanted = max(count, depth) + _SPARE + 1
        ranked = []
        found = self.engine.answer_pictures(pictures, wanted, self.settings, only)
        for picture, images in zip(pictures, found, strict=True):
            ranked.append(without(images, picture.image_key))
        # Calibrated are texts: two pictures are alike in another way.
        return self._describe([""] * len(pictures), ranked, count, depth, None)

    def refresh(self) -> None:
        """Take over what changed in the database."""
        self.apply(self.follower.changes())

    def apply(self, changes: Changes) -> IntArray:
        """Apply changes to the engine; returns the image keys that became searchable."""
        self.descriptions.memory.forget(changes.deleted.tolist())
        return self.engine.apply(changes)

    def inherit(self, previous: "Searcher[QueryEngine]") -> None:
        """Take over what a searcher of the same generation, which this one replaces, remembers."""
        self.descriptions.memory = previous.descriptions.memory

    def listen(self, channel: str) -> None:
        """Let notifications of a further channel wake the follower."""
        self.follower.listen(channel)

    def close(self) -> None:
        """Close connections and files."""
        self.engine.close()
        self.follower.close()
        self.descriptions.close()

    def _describe(
        self,
        texts: Sequence[str],
        ranked: Sequence[RankedImages],
        count: int,
        depth: int,
        calibration: RelevanceCalibration | None,
    ) -> list[AnsweredQuery]:
        # Two queries for all answers of a batch, instead of two for each.
        keys: set[int] = set()
        needed: set[int] = set()
        for images in ranked:
            ranked_keys = images.image_keys[: count + _SPARE].tolist()
            keys.update(ranked_keys)
            needed.update(ranked_keys[:count])
        described = self.descriptions.read(sorted(keys), needed)
        answers = []
        for text, images in zip(texts, ranked, strict=True):
            found = found_images(images, described.stored, described.identifiers, count)
            place = found[-1].place + 1 if found else 0
            deeper = depth > count and len(found) == count
            rest = RankedRest.of(images).behind(place).first(depth - count) if deeper else None
            answers.append(
                AnsweredQuery(
                    text,
                    self.engine.generation,
                    hits_of(found, self.store.link),
                    images.candidates,
                    tuple(image.stored.captions for image in found),
                    tuple(image.cosine for image in found),
                    found_relevances(found, calibration),
                    self._reached(images),
                    rest,
                )
            )
        return answers

    def _reached(self, images: RankedImages) -> tuple[ReachedLeaf, ...]:
        reached = []
        scores = images.leaf_scores.tolist()
        for leaf, score in zip(images.leaves[:SHOWN_LEAVES].tolist(), scores, strict=False):
            codes = self.engine.shape.unpack(int(leaf))
            reached.append(ReachedLeaf(codes, round(score, _SCORE_DIGITS)))
        return tuple(reached)


@dataclass(frozen=True, slots=True)
class FoundImage:
    """A ranked image that the database still has."""

    stored: StoredImage
    identifier: Sequence[int]
    score: float
    cosine: float | None
    place: int
    """Among the ranked images, from 0."""


def without(ranked: RankedImages, image_key: int | None) -> RankedImages:
    """The ranked images less one of them, if it is among them."""
    return _only(ranked, ranked.image_keys != (-1 if image_key is None else image_key))


def relevant(ranked: RankedImages, calibration: RelevanceCalibration, least: float) -> RankedImages:
    """The ranked images of at least that relevance; `UsageError` where none has a cosine."""
    if ranked.cosines is None:
        raise UsageError(NO_COSINES)
    return _only(ranked, at_least(calibration, ranked.cosines, least))


def _only(ranked: RankedImages, kept: BoolArray) -> RankedImages:
    cosines = None if ranked.cosines is None else ranked.cosines[kept]
    return replace(
        ranked, image_keys=ranked.image_keys[kept], scores=ranked.scores[kept], cosines=cosines
    )


def found_relevances(
    found: Sequence[FoundImage], calibration: RelevanceCalibration | None
) -> tuple[float | None, ...]:
    """The relevance of each image; None without a calibration, or without cosines."""
    cosines = [image.cosine for image in found if image.cosine is not None]
    if calibration is None or len(cosines) < len(found):
        return (None,) * len(found)
    shares = relevances_of(calibration, np.array(cosines, np.float32)).tolist()
    return tuple(round(share, _RELEVANCE_DIGITS) for share in shares)


def found_images(
    ranked: RankedImages | RankedRest,
    stored: Mapping[int, StoredImage],
    identifiers: Mapping[int, Sequence[int]],
    count: int,
) -> list[FoundImage]:
    """Select the first `count` ranked images that are still indexed, best first.

    `stored` and `identifiers` are what the database has now, by image key; it decides.
    """
    found: list[FoundImage] = []
    cosines = None if ranked.cosines is None else ranked.cosines.tolist()
    scores = ranked.scores.tolist()
    for place, key in enumerate(ranked.image_keys.tolist()):
        image = stored.get(key)
        if image is not None and image.state == "indexed" and key in identifiers:
            cosine = None if cosines is None else round(cosines[place], _SCORE_DIGITS)
            found.append(FoundImage(image, identifiers[key], scores[place], cosine, place))
        if len(found) == count:
            break
    return found


def hits_of(
    found: Sequence[FoundImage], link: Callable[[str], str], first_rank: int = 1
) -> tuple[Hit, ...]:
    """Number the images. `link` gives the address of a stored picture."""
    hits = []
    for rank, image in enumerate(found, start=first_rank):
        hits.append(
            Hit(
                rank,
                image.stored.image_id,
                image.stored.uri,
                tuple(image.identifier),
                round(float(image.score), _SCORE_DIGITS),
                link(image.stored.normalized_uri),
                image.stored.metadata,
            )
        )
    return tuple(hits)
