"""The result of the switch benchmark: what users would have noticed, and how long queries took."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from ops.bench.load_client import QueryTiming
from schemas.records import JsonObject
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation

# p99 of queries while generations are switched, as a multiple of the quiet one.
GOAL = 1.5

# Different error messages of queries that a document shows.
_SHOWN_FAILURES = 5

MoveKind = Literal["switch", "rollback"]

# Image id → identifier, in one generation.
Identifiers = Mapping[str, tuple[int, ...]]

_PRIMARIES = """
    SELECT image_id, leaf, suffix FROM posting JOIN image USING (image_key)
    WHERE generation = %s AND suffix IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Move:
    """One switch or rollback."""

    kind: MoveKind
    command_s: float
    """How long the command took."""
    until_served_s: float
    """From the command's begin until queries were answered by the new generation."""


@dataclass(frozen=True, slots=True)
class AnswerAudit:
    """What was wrong with the answers. The field names are keys of the JSON document."""

    queries: int
    failed: int
    failures: list[str]
    """Different error messages, a few of them."""
    mixed: int
    """Answers with an identifier of another generation than the one that answered."""
    empty: int
    """Answers without an image."""
    generations_that_answered: int
    missing: Mapping[int, int]
    """Receiving generation → arrivals that it lacks."""


@dataclass(frozen=True, slots=True)
class QueryLatency:
    """Milliseconds of the queries of a phase. The field names are keys of the JSON document."""

    p50: float
    p95: float
    p99: float
    queries: int

    @classmethod
    def between(
        cls, timings: Sequence[QueryTiming], begin_s: float, end_s: float
    ) -> "QueryLatency":
        """Of the answered queries that were due in [begin, end)."""
        took_ms = []
        for timing in timings:
            if not timing.error and begin_s <= timing.due_s < end_s:
                took_ms.append(timing.took_ms)
        p50, p95, p99 = np.percentile(took_ms, [50, 95, 99]).tolist()
        return cls(round(p50, 2), round(p95, 2), round(p99, 2), len(took_ms))


@dataclass(frozen=True, slots=True)
class SwitchBenchResult:
    """All that was measured."""

    model: str
    settled: bool
    """Whether all arrivals were indexed in the end."""
    images: int
    answers: AnswerAudit
    quiet: QueryLatency
    switching: QueryLatency
    moves: Sequence[Move]

    @property
    def passed(self) -> bool:
        """Whether no user would have noticed a move."""
        answers = self.answers
        wrong = answers.failed or answers.mixed or any(answers.missing.values())
        return self.settled and not wrong

    def to_json(self) -> JsonObject:
        """The JSON document of `sigma bench switch`."""
        answers = asdict(self.answers)
        answers["missing"] = {str(number): lost for number, lost in self.answers.missing.items()}
        return {
            "model": self.model,
            "settled": self.settled,
            "images": self.images,
            **answers,
            "quiet_ms": asdict(self.quiet),
            "switching_ms": asdict(self.switching),
            "p99_ratio": round(self.switching.p99 / self.quiet.p99, 3),
            "p99_ratio_goal": GOAL,
            **self._moves_to_json("switch", "switches"),
            **self._moves_to_json("rollback", "rollbacks"),
        }

    def _moves_to_json(self, kind: MoveKind, plural: str) -> JsonObject:
        moves = [move for move in self.moves if move.kind == kind]
        command_s = max((move.command_s for move in moves), default=0.0)
        until_served_s = max((move.until_served_s for move in moves), default=0.0)
        return {
            plural: len(moves),
            f"{kind}_s": {
                "command": round(command_s, 3),
                "until_served": round(until_served_s, 3),
            },
        }


def audit_answers(
    conn: Connection, timings: Sequence[QueryTiming], image_ids: Collection[str]
) -> AnswerAudit:
    """Compare the answers with the postings of all generations, and those with the arrivals."""
    # Identifiers of a generation never change, so what is posted now was posted when it answered.
    identifiers: dict[int, Identifiers] = {}
    for generation in generations.generations(conn):
        identifiers[generation.id] = _identifiers(conn, generation)
    failures = [timing.error for timing in timings if timing.error]
    # Generations that receive no arrivals any more may lack some.
    missing = {}
    for generation in generations.receiving(conn):
        missing[generation.id] = len(set(image_ids) - identifiers[generation.id].keys())
    answering = {timing.generation for timing in timings} - {None}
    return AnswerAudit(
        queries=len(timings),
        failed=len(failures),
        failures=sorted(set(failures))[:_SHOWN_FAILURES],
        mixed=sum(_is_mixed(timing, identifiers) for timing in timings),
        empty=sum(not timing.images and not timing.error for timing in timings),
        generations_that_answered=len(answering),
        missing=missing,
    )


def _identifiers(conn: Connection, generation: Generation) -> Identifiers:
    """The identifiers of a generation's images."""
    identifiers = {}
    for image_id, leaf, suffix in conn.execute(_PRIMARIES, (generation.id,)):
        identifiers[image_id] = tuple(generation.shape.identifier(leaf, suffix))
    return identifiers


def _is_mixed(timing: QueryTiming, identifiers: Mapping[int, Identifiers]) -> bool:
    """Whether some image of an answer has another identifier in the generation that answered."""
    if timing.generation is None:
        return False
    # An image that is not posted there at all is mixed in too.
    expected = identifiers[timing.generation]
    return any(expected.get(image.image_id) != image.identifier for image in timing.images)
