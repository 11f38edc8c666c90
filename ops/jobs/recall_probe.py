"""Probes: known-item queries, sampled by the age of their image, that tell how well a generation finds what it holds."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.retrieval.recall import recall_at, wilson
from schemas.settings import RetrievalSettings
from workers.query.engine import Engine
from workers.query.searcher import Searcher
from workers.repository.connection import Connection, row
from workers.repository.generations import live
from workers.runtime.services import Services

Figures = dict[str, Any]
Rank = int | None
"""Place of the image asked for, from 1; None when it is not among the first `DEPTH`."""

HOURLY = 200
"""Probes of the scheduled job: R@10 of one cohort to about ±5 points."""

DEPTH = 10
_BATCH = 16
_AGES = (("hour", 3600.0), ("day", 86_400.0), ("week", 604_800.0), ("older", float("inf")))


@dataclass(frozen=True, slots=True)
class Probe:
    """A caption of one image. `cohort` is trained, or the age of an image that was not: hour, day, week, older."""

    text: str
    image_key: int
    cohort: str


def recall_probe(services: Services, conn: Connection) -> Figures:
    """The job: recall of the live generation by cohort, beside exact dense search, with intervals."""
    generation = live(conn)
    if generation is None:
        return {"queries": 0, "why": "no generation is live"}
    probes = sample(conn, generation.id, HOURLY)
    searcher = Searcher(services, generation)
    try:
        ours, candidates = ranks(searcher.engine, probes, services.settings.retrieval)
        exact = exact_ranks(searcher.engine, probes)
    finally:
        searcher.close()
    cohorts = {
        name: figures_of([ours[at] for at in places], [exact[at] for at in places])
        for name, places in by_cohort(probes).items()
    }
    return {
        "generation": generation.id,
        "queries": len(probes),
        "candidates": candidates,
        "cohorts": cohorts,
    }


def sample(conn: Connection, generation: int, count: int) -> list[Probe]:
    """At most `count` images of a generation at random keys, each once; the same as long as its oldest and newest are the same."""
    low, high = row(conn, "probe_range", generation=generation) or (0, 0)
    chance = random.Random(f"{generation} {low} {high}")
    found: dict[int, Probe] = {}
    for _ in range(count):
        sampled = row(conn, "probe_sample", generation=generation, after=chance.randint(low, high))
        if sampled is not None:
            key, captions, test_captions, trained, age_s = sampled
            cohort = "trained" if trained else next(name for name, limit in _AGES if age_s < limit)
            found[key] = Probe((test_captions or captions)[0], key, cohort)
    return list(found.values())


def ranks(
    engine: Engine, probes: Sequence[Probe], settings: RetrievalSettings
) -> tuple[list[Rank], float]:
    """Where our search puts the image of each probe, and how many images it scored for one on average."""
    found: list[Rank] = []
    scored = 0
    for part in _parts(probes):
        answers = engine.answer([probe.text for probe in part], DEPTH, settings)
        scored += sum(answer.candidates for answer in answers)
        found += [
            _rank(answer.image_keys.tolist(), probe.image_key)
            for answer, probe in zip(answers, part, strict=True)
        ]
    return found, scored / max(1, len(probes))


def exact_ranks(engine: Engine, probes: Sequence[Probe]) -> list[Rank]:
    """Where exact dense search with the same encoder puts it."""
    found: list[Rank] = []
    for part in _parts(probes):
        answers = engine.answer_exact(
            engine.encoder.embed_texts([probe.text for probe in part]), DEPTH
        )
        found += [
            _rank(answer.image_keys.tolist(), probe.image_key)
            for answer, probe in zip(answers, part, strict=True)
        ]
    return found


def by_cohort(probes: Sequence[Probe]) -> Mapping[str, list[int]]:
    """Places of each cohort's probes."""
    places: dict[str, list[int]] = defaultdict(list)
    for at, probe in enumerate(probes):
        places[probe.cohort].append(at)
    return places


def figures_of(ours: Sequence[Rank], exact: Sequence[Rank]) -> Figures:
    """Recall of one cohort."""
    cutoffs = (1, 5, 10)
    return {
        "queries": len(ours),
        "ours": recall_at(ours, cutoffs),
        "exact_dense": recall_at(exact, cutoffs),
        "ours_R@10_95%": list(wilson(sum(rank is not None for rank in ours), len(ours))),
    }


def _parts(probes: Sequence[Probe]) -> list[Sequence[Probe]]:
    return [probes[start : start + _BATCH] for start in range(0, len(probes), _BATCH)]


def _rank(keys: list[int], key: int) -> Rank:
    return keys.index(key) + 1 if key in keys else None
