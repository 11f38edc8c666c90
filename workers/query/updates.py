"""Engine updates: what happened to a generation in memory, as messages to the decode thread.

Followers send them (`workers.query.residents`); the decode thread, which owns the engines, applies
them between two batches of queries (`workers.query.served`).
"""

from collections.abc import Callable
from dataclasses import dataclass

from workers.query.engine import QueryEngine
from workers.query.searcher import Searcher
from workers.repository.follower import Changes
from workers.repository.generations import Generation

# Loads a generation. Arguments: the generation; the searcher it will replace, or None; whether
# the generation is live. Takes seconds.
LoadSearcher = Callable[[Generation, Searcher[QueryEngine] | None, bool], Searcher[QueryEngine]]


@dataclass(frozen=True, slots=True)
class GenerationLoaded:
    """The generation can answer from now on; it replaces a searcher of the same generation."""

    searcher: Searcher[QueryEngine]


@dataclass(frozen=True, slots=True)
class ChangesApplied:
    """The database has changes of the generation, which the engine is to apply."""

    searcher: Searcher[QueryEngine]
    changes: Changes


@dataclass(frozen=True, slots=True)
class GenerationPromoted:
    """The generation is live: queries that name none are answered from it."""

    searcher: Searcher[QueryEngine]


@dataclass(frozen=True, slots=True)
class GenerationUnloaded:
    """The generation is no longer wanted in memory."""

    searcher: Searcher[QueryEngine]


EngineUpdate = GenerationLoaded | ChangesApplied | GenerationPromoted | GenerationUnloaded
