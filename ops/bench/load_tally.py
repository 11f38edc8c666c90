"""The load tally: what the clients of one phase of the load benchmark saw."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from schemas.records import JsonObject


@dataclass(frozen=True, slots=True)
class LoadPhase:
    """One phase: a closed loop of clients, or an open loop of so many queries a second."""

    name: str
    seconds: float
    clients: int
    """Of a closed loop; in an open one, the most connections."""
    rate: float | None = None
    """Queries a second of an open loop; None for a closed one."""
    seed: int = 0

    @classmethod
    def from_json(cls, document: JsonObject) -> "LoadPhase":
        """Read what `to_json` made."""
        return cls(**document)

    def to_json(self) -> JsonObject:
        """Return the JSON document."""
        return asdict(self)

    def with_clients(self, clients: int) -> "LoadPhase":
        """Return the same phase with other clients."""
        return replace(self, clients=clients)


@dataclass(frozen=True, slots=True)
class LoadTally:
    """Every query is in one of `answered_ms`, `refused_ms` and `failures`."""

    clients: int
    """Fewer than wanted where the system allows fewer open files."""
    begun: int
    """Queries."""
    elapsed_s: float
    """Until the last answer."""
    cpu_s: float
    """Processor time of the generator."""
    answered_ms: list[float]
    refused_ms: list[float]
    """Until the 429."""
    late_ms: list[float]
    """How much later than due the generator took up each query of an open loop."""
    failures: Mapping[str, int]
    """Queries by what went wrong."""

    @classmethod
    def from_json(cls, document: JsonObject) -> "LoadTally":
        """Read what `to_json` made."""
        return cls(**document)

    @property
    def failed(self) -> int:
        """Queries that were neither answered nor refused as they should be."""
        return sum(self.failures.values())

    def to_json(self) -> JsonObject:
        """Return the JSON document."""
        return asdict(self)


class TallyKeeper:
    """Counts queries while they are under way."""

    def __init__(self) -> None:
        self.begun = 0
        self._answered_ms: list[float] = []
        self._refused_ms: list[float] = []
        self._late_ms: list[float] = []
        self._failures: Counter[str] = Counter()
        self._ended = 0

    @property
    def under_way(self) -> int:
        """Queries that have no outcome yet."""
        return self.begun - self._ended

    def begin(self, late_s: float | None = None) -> None:
        """Count a query; with how late it is if it was due at a moment."""
        self.begun += 1
        if late_s is not None:
            self._late_ms.append(round(late_s * 1000, 2))

    def answer(self, took_ms: float) -> None:
        """Count an answer."""
        self._answered_ms.append(round(took_ms, 2))
        self._ended += 1

    def refuse(self, took_ms: float) -> None:
        """Count a refusal."""
        self._refused_ms.append(round(took_ms, 2))
        self._ended += 1

    def fail(self, kind: str) -> None:
        """Count a failure."""
        self._failures[kind] += 1
        self._ended += 1

    def tally(self, clients: int, elapsed_s: float, cpu_s: float) -> LoadTally:
        """Return what was counted."""
        return LoadTally(
            clients,
            self.begun,
            elapsed_s,
            cpu_s,
            self._answered_ms,
            self._refused_ms,
            self._late_ms,
            dict(self._failures),
        )
