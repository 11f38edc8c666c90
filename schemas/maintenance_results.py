"""Results of the jobs that change something: `gate`, `retrain`, `recluster` and `prune`.

Written and read by the rules of `schemas.job_results`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.generation_config import GateVerdict
from schemas.job_results import skip_reason
from schemas.json_values import StoredJson, list_of, text, whole_number
from schemas.training_record import TrainingRecord

# Begin of the names of topics, which stand beside other keys in the figures.
_TOPIC_PREFIX = "sigma."


@dataclass(frozen=True, slots=True)
class GateResult:
    """`gate`: the candidates judged, and what became of them."""

    judged: Mapping[int, GateVerdict]
    """By the number of the candidate generation."""
    promoted: int | None
    """The generation that went live."""
    fallback_caught_up: int
    """Images assigned in the fallback generation, which it lacked."""

    def to_json(self) -> dict[str, object]:
        """The figures of a gate run."""
        return {
            "judged": {str(number): verdict.to_json() for number, verdict in self.judged.items()},
            "promoted": self.promoted,
            "way_back_caught_up": self.fallback_caught_up,
        }

    @classmethod
    def from_json(cls, figures: StoredJson) -> "GateResult | None":
        """None for a run without a live generation; unreadable verdicts are left out."""
        recorded = figures.get("judged")
        if not isinstance(recorded, Mapping) or skip_reason(figures) is not None:
            return None
        judged = {}
        for number, document in recorded.items():
            verdict = _verdict(document)
            if verdict is not None and str(number).isdecimal():
                judged[int(number)] = verdict
        return cls(
            judged,
            whole_number(figures.get("promoted")),
            whole_number(figures.get("way_back_caught_up")) or 0,
        )


@dataclass(frozen=True, slots=True)
class GateSkipped:
    """`gate` without a live generation to compare with."""

    why: str

    def to_json(self) -> dict[str, object]:
        """The figures of a gate run that judged nothing."""
        return {"judged": {}, "why": self.why}

    @classmethod
    def from_json(cls, figures: StoredJson) -> "GateSkipped | None":
        """None for a gate run that looked at candidates."""
        why = skip_reason(figures)
        return None if why is None else cls(why)


# Keys of a training record that the retraining jobs copy into their figures.
_TRAINING_KEYS = (
    "mode",
    "parent",
    "images",
    "stages",
    "evaluations",
    "recluster",
    "seconds",
    "cpu_seconds",
)


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """`retrain` or `recluster`: the candidate generation that a training made."""

    generation: int
    state: str
    training: TrainingRecord
    """How it was trained; only the values of `_TRAINING_KEYS` are stored."""
    failure: tuple[str, ...] | None = None
    """Why a part of its training failed."""
    resumed: bool = False
    """Whether the run finished a training that another process had begun."""

    def to_json(self) -> dict[str, object]:
        """The figures of a training."""
        return {**_candidate_json(self), "resumed": self.resumed}

    @classmethod
    def from_json(cls, figures: StoredJson) -> "CandidateResult | None":
        """None for a run that trained nothing."""
        candidate = _candidate(figures)
        return None if skip_reason(figures) is not None else candidate


@dataclass(frozen=True, slots=True)
class CandidateSkipped:
    """`retrain` or `recluster` without a training: nothing to learn, or a candidate waits."""

    why: str
    waiting: CandidateResult | None = None
    """The candidate that waits for its gate."""

    def to_json(self) -> dict[str, object]:
        """The figures of a run that trained nothing."""
        if self.waiting is None:
            return {"generation": None, "why": self.why}
        return {**_candidate_json(self.waiting), "why": self.why}

    @classmethod
    def from_json(cls, figures: StoredJson) -> "CandidateSkipped | None":
        """None for a run that trained."""
        why = skip_reason(figures)
        return None if why is None else cls(why, _candidate(figures))


@dataclass(frozen=True, slots=True)
class PruneResult:
    """`prune`: what was deleted because its time is over."""

    shadow_queries: int
    generations: tuple[int, ...]
    """Generations that were dropped."""
    events: Mapping[str, int] = field(default_factory=dict)
    """Deleted events by topic; empty with Kafka, which deletes events by itself."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """What else was erased or forgotten, by kind."""

    def to_json(self) -> dict[str, object]:
        """The figures of a pruning; topics stand beside the other keys."""
        return {
            "shadow_query": self.shadow_queries,
            "generations": list(self.generations),
            **self.events,
            **self.rows,
        }

    @classmethod
    def from_json(cls, figures: StoredJson) -> "PruneResult | None":
        """None where the number of shadow queries is missing."""
        shadow_queries = whole_number(figures.get("shadow_query"))
        if shadow_queries is None:
            return None
        numbers = map(whole_number, list_of(figures.get("generations")))
        generations = tuple(number for number in numbers if number is not None)
        events: dict[str, int] = {}
        rows: dict[str, int] = {}
        for name, value in figures.items():
            deleted = whole_number(value)
            if name != "shadow_query" and deleted is not None:
                (events if name.startswith(_TOPIC_PREFIX) else rows)[name] = deleted
        return cls(shadow_queries, generations, events, rows)


@dataclass(frozen=True, slots=True)
class TrimResult:
    """`trim-log`: how many events were deleted of each topic."""

    events: Mapping[str, int]

    def to_json(self) -> dict[str, object]:
        """The figures of a trimming."""
        return dict(self.events)


def _verdict(document: object) -> GateVerdict | None:
    if not isinstance(document, Mapping) or not isinstance(document.get("passed"), bool):
        return None
    return GateVerdict.from_json(document)


def _candidate(figures: StoredJson) -> CandidateResult | None:
    generation = whole_number(figures.get("generation"))
    state = text(figures.get("state"))
    if generation is None or state is None:
        return None
    recorded = {name: figures[name] for name in _TRAINING_KEYS if name in figures}
    try:
        training = TrainingRecord.from_json(recorded)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    failure = figures.get("failure")
    return CandidateResult(
        generation,
        state,
        training,
        None if failure is None else tuple(str(reason) for reason in list_of(failure)),
        figures.get("resumed") is True,
    )


def _candidate_json(candidate: CandidateResult) -> dict[str, object]:
    document: dict[str, object] = {
        "generation": candidate.generation,
        "state": candidate.state,
    }
    record = candidate.training.to_json()
    document |= {name: record[name] for name in _TRAINING_KEYS if name in record}
    if candidate.failure is not None:
        document["failure"] = list(candidate.failure)
    return document
