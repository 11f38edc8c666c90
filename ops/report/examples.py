"""Examples: queries whose known image the live generation places better or worse than the generation before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from ops.jobs.recall_probe import sample
from schemas.errors import SigmaError
from workers.query.searcher import Searcher, checked_query
from workers.repository.connection import Connection
from workers.repository.generations import Generation, generations
from workers.repository.images import images_by_key
from workers.repository.postings import postings_of
from workers.runtime.services import Services

PROBES = 100
"""Queries asked of both generations."""

DEPTH, TOP = 10, 3
"""How deep an answer is looked at, and how many of its images an example shows."""

SHOWN = 6
"""Examples of each kind."""

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the known image stands (from 1; None is not among the first ten), and the first images of the answer."""

    rank: int | None
    top: tuple[str, ...]

    @property
    def worth(self) -> float:
        """Reciprocal rank: a step near the top counts most."""
        return 1 / self.rank if self.rank else 0.0


@dataclass(frozen=True, slots=True)
class Example:
    """A caption asked as a query, the image it was written for, and both answers."""

    query: str
    image_id: str
    before: Answer
    after: Answer

    @property
    def change(self) -> float:
        """How much better (above 0) the live generation places the image."""
        return self.after.worth - self.before.worth

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "query": self.query,
            "image_id": self.image_id,
            "rank": {"before": self.before.rank, "after": self.after.rank},
            "top": {"before": list(self.before.top), "after": list(self.after.top)},
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two generations on the same queries. `why` says why there is none."""

    before: int | None = None
    after: int | None = None
    examples: tuple[Example, ...] = ()
    why: str | None = None

    @property
    def better(self) -> list[Example]:
        """Those placed better now, the greatest gain first."""
        return sorted((one for one in self.examples if one.change > 0), key=lambda one: -one.change)

    @property
    def worse(self) -> list[Example]:
        """Those placed worse now, the greatest loss first."""
        return sorted((one for one in self.examples if one.change < 0), key=lambda one: one.change)

    @property
    def chance(self) -> float:
        """How often as lopsided a result comes about when both are equally good (two-sided sign test); 1 without differences."""
        better, worse = len(self.better), len(self.worse)
        return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0

    @property
    def shown(self) -> list[Example]:
        """The examples that a report shows."""
        return [*self.better[:SHOWN], *self.worse[:SHOWN]]

    @property
    def image_ids(self) -> set[str]:
        """Images of the examples that a report shows."""
        return {
            name for one in self.shown for name in (one.image_id, *one.before.top, *one.after.top)
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "why": self.why,
            "before": self.before,
            "after": self.after,
            "asked": len(self.examples),
            "better": len(self.better),
            "worse": len(self.worse),
            "chance": round(self.chance, 4),
            "examples": [one.to_dict() for one in self.shown],
        }


def compare(services: Services, conn: Connection, probes: int = PROBES) -> Comparison:
    """Ask the live generation and the one before it the same known-item queries. What cannot be loaded is said, not raised."""
    pair = pair_of(generations(conn))
    if isinstance(pair, str):
        return Comparison(why=pair)
    before, after = pair
    try:
        wanted = _sample(conn, before.id, after.id, probes)
        old, new = (_answers(services, one, wanted) for one in pair)
    except (SigmaError, OSError) as error:
        return Comparison(
            before.id,
            after.id,
            why=f"Generations {before.id} and {after.id} could not be compared: {error}.",
        )
    found = [
        Example(text, image_id, one, other)
        for (text, image_id), one, other in zip(wanted, old, new, strict=True)
    ]
    why = (
        None
        if found
        else f"No image with a caption is in both generation {before.id} and generation {after.id}."
    )
    return Comparison(before.id, after.id, tuple(found), why)


def pair_of(found: Sequence[Generation]) -> tuple[Generation, Generation] | str:
    """The generation that answered last before the live one, and the live one; or the reason why there is no pair."""
    live = next((one for one in found if one.state == "live"), None)
    if live is None:
        return "No generation is live, so there are no answers to compare."
    retired = [one for one in found if one.state == "retired" and one.ended_at is not None]
    if not retired:
        return f"Generation {live.id} is the only one that can answer: examples appear here after the first switch."
    return max(retired, key=lambda one: one.ended_at or one.created_at), live


def _sample(conn: Connection, before: int, after: int, probes: int) -> list[tuple[str, str]]:
    """(caption, image id) of images at random keys that both generations hold, each once; the same for the same state."""
    texts = {probe.image_key: probe.text for probe in sample(conn, after, probes)}
    known, stored = postings_of(conn, before, list(texts)), images_by_key(conn, list(texts))
    return [
        (text, stored[key].image_id)
        for key, text in texts.items()
        if key in known and key in stored and text.strip()
    ]


def _answers(
    services: Services, generation: Generation, wanted: Sequence[tuple[str, str]]
) -> list[Answer]:
    """One generation's answers. Only one is loaded at a time: both may not fit into memory together."""
    searcher = Searcher(services, generation)
    found: list[Answer] = []
    try:
        for start in range(0, len(wanted), _BATCH):
            part = wanted[start : start + _BATCH]
            results = searcher.search(
                [checked_query(text[:2000], DEPTH) for text, _ in part], DEPTH
            )
            for (_, image_id), result in zip(part, results, strict=True):
                ids = [hit.image_id for hit in result.hits]
                found.append(
                    Answer(ids.index(image_id) + 1 if image_id in ids else None, tuple(ids[:TOP]))
                )
    finally:
        searcher.close()
    return found
