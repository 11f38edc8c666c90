"""A generation's configuration, JSON in its row: its training, its gate's verdict, its failure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from schemas.json_values import finite_number, list_of, object_of, whole_number
from schemas.records import JsonObject
from schemas.training_record import TrainingRecord

_LIVE_RECALL = "live_R@10"
_CANDIDATE_RECALL = "candidate_R@10"

# Keys of a verdict that earlier versions left out.
_OPTIONAL_OF_GATE = (
    "missing",
    "shadow_queries",
    "shadow",
    "candidates",
    "captions",
    "decoder",
    "checked_at",
)

# Keys of the training record that are copied to the generation's row while a training goes on.
_TRAINING_KEYS_IN_ROW = (
    "reads",
    "mode",
    "parent",
    "seed",
    "encoder_source",
    "encoder_px",
    "images",
    "stages",
    "evaluations",
    "recluster",
    "relevance",
    "base_recall",
    "seconds",
    "cpu_seconds",
)


@dataclass(frozen=True, slots=True)
class CohortComparison:
    """Recall of one age cohort's probes: R@10 of both generations, the loss, and what it may be."""

    queries: int
    live_recall: float
    candidate_recall: float
    loss: float | None = None
    loss_limit: float | None = None

    def to_json(self) -> JsonObject:
        """The stored form."""
        document: JsonObject = {
            "queries": self.queries,
            _LIVE_RECALL: self.live_recall,
            _CANDIDATE_RECALL: self.candidate_recall,
        }
        if self.loss is not None:
            document["loss"] = self.loss
        if self.loss_limit is not None:
            document["loss_limit"] = self.loss_limit
        return document

    @classmethod
    def from_json(cls, document: object) -> "CohortComparison | None":
        """Read what `to_json` wrote; None where the queries or a recall are missing."""
        recorded = object_of(document)
        queries = whole_number(recorded.get("queries"))
        live_recall = finite_number(recorded.get(_LIVE_RECALL))
        candidate_recall = finite_number(recorded.get(_CANDIDATE_RECALL))
        if queries is None or live_recall is None or candidate_recall is None:
            return None
        return cls(
            queries=queries,
            live_recall=live_recall,
            candidate_recall=candidate_recall,
            loss=finite_number(recorded.get("loss")),
            loss_limit=finite_number(recorded.get("loss_limit")),
        )


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Whether a candidate may go live in place of the generation `against`, and what was measured.

    Figures that an earlier version did not record are None; `other` are keys of a later one.
    """

    passed: bool
    reasons: tuple[str, ...] = ()
    """Why it may not; empty when it passed."""
    against: int | None = None
    cohorts: Mapping[str, CohortComparison] = field(default_factory=dict)
    """By name of the cohort; stored as `probes`."""
    missing: int | None = None
    """Images of the live generation that the candidate has no posting of."""
    latency_ratio: float | None = None
    """How many times as long a query takes; None also after too few shadow queries."""
    shadow_queries: int | None = None
    shadow: Mapping[str, Any] | None = None
    """The summary of shadow queries."""
    candidates: Mapping[str, float] | None = None
    """Images scored for one query on average, of `live` and of `candidate`."""
    captions: Mapping[str, float] | None = None
    """How often own identifiers predict captions better than exchanged ones, of both."""
    decoder: Mapping[str, float] | None = None
    """R@10 of the decoder alone, in the paper's mode, of both."""
    checked_at: str | None = None
    """ISO 8601 with offset."""
    other: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """The stored form."""
        document: JsonObject = {
            **self.other,
            "passed": self.passed,
            "reasons": list(self.reasons),
            "against": self.against,
            "probes": {name: cohort.to_json() for name, cohort in self.cohorts.items()},
        }
        if self.shadow_queries is not None:
            document["latency_ratio"] = self.latency_ratio
        for name in _OPTIONAL_OF_GATE:
            value = getattr(self, name)
            if value is not None:
                document[name] = value
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "GateVerdict":
        """Read what `to_json` of this version or of an earlier one wrote.

        A cohort that cannot be understood is left out: every list of generations reads verdicts.
        """
        rest = dict(document)
        cohorts = {}
        for name, recorded in object_of(rest.pop("probes", None)).items():
            cohort = CohortComparison.from_json(recorded)
            if cohort is not None:
                cohorts[name] = cohort
        return cls(
            passed=rest.pop("passed", None) is True,
            reasons=tuple(map(str, list_of(rest.pop("reasons", None)))),
            against=rest.pop("against", None),
            cohorts=cohorts,
            latency_ratio=rest.pop("latency_ratio", None),
            **{name: rest.pop(name, None) for name in _OPTIONAL_OF_GATE},
            other=rest,
        )


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """All that is stored of a generation beside its codebook, checkpoint and state."""

    training: TrainingRecord = TrainingRecord()
    gate: GateVerdict | None = None
    """The newest verdict; None before the gate was asked."""
    failure: tuple[str, ...] | None = None
    """Why its training failed."""
    dropped_at: datetime | None = None
    """When its tables were deleted."""

    def to_json(self) -> JsonObject:
        """The stored form: the training record's keys beside the others."""
        changes = config_changes(gate=self.gate, failure=self.failure, dropped_at=self.dropped_at)
        return self.training.to_json() | changes

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "GenerationConfig":
        """Read what `to_json` of this version or of an earlier one wrote."""
        rest = dict(document)
        gate = rest.pop("gate", None)
        failure = rest.pop("failure", None)
        dropped_at = rest.pop("dropped_at", None)
        return cls(
            gate=GateVerdict.from_json(gate) if isinstance(gate, Mapping) and gate else None,
            failure=None if failure is None else tuple(failure),
            dropped_at=None if dropped_at is None else datetime.fromisoformat(dropped_at),
            training=TrainingRecord.from_json(rest),
        )


def config_changes(
    *,
    training: TrainingRecord | None = None,
    gate: GateVerdict | None = None,
    failure: Sequence[str] | None = None,
    dropped_at: datetime | None = None,
) -> JsonObject:
    """The keys to merge into a stored configuration: those of what is given."""
    changes: JsonObject = {}
    if training is not None:
        record = training.to_json()
        changes |= {name: record[name] for name in _TRAINING_KEYS_IN_ROW if name in record}
    if gate is not None:
        changes["gate"] = gate.to_json()
    if failure is not None:
        changes["failure"] = list(failure)
    if dropped_at is not None:
        changes["dropped_at"] = dropped_at.isoformat()
    return changes
