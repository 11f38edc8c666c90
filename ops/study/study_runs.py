"""Runs: what one policy reached on one stream of one seed. Each run is a JSON file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from ops.study.streams import StreamConfig, StreamKind
from schemas.errors import UsageError
from schemas.records import JsonObject

# Which images are asked for, when, and how.
# at_arrival: a session's arrivals before the upkeep. new: the same after it. old: a sample of
# earlier images after it. dense_new and dense_old: new and old by exact dense search.
Measure = Literal["at_arrival", "new", "old", "dense_new", "dense_old"]

# All measures, in the order of a session's document.
MEASURES: tuple[Measure, ...] = ("at_arrival", "new", "old", "dense_new", "dense_old")

# R@1, R@5 and R@10, as shares from 0 to 1.
RecallFigures = Mapping[str, float]

# Folder of the run files, in the folder of the results.
RUNS_FOLDER = "runs"


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What a policy did at the end of a session."""

    action: str = ""
    """`refresh`, `recluster` or `full`; empty when nothing was done."""
    cpu_s: float = 0.0
    """CPU seconds of the training and of posting all images again."""
    moved: float = 0.0
    """Share of the images whose identifier changed."""
    alarms: tuple[str, ...] = ()
    """Monitors that alarmed, for policies that look at them."""


@dataclass(frozen=True, slots=True)
class SessionResult:
    """What was measured in one session."""

    session: int
    later_share: float
    """Share of later scenes among the arrivals."""
    images: int
    """Images in the index after the session."""
    recall: Mapping[Measure, RecallFigures]
    upkeep: Upkeep

    def to_json(self) -> JsonObject:
        """One of a run's `sessions`."""
        document: JsonObject = {
            "session": self.session,
            "later_share": self.later_share,
            "images": self.images,
        }
        # Flat: a key for each measure, and the keys of the upkeep.
        for measure in MEASURES:
            document[measure] = dict(self.recall[measure])
        document["action"] = self.upkeep.action
        document["cpu_s"] = self.upkeep.cpu_s
        document["moved"] = self.upkeep.moved
        document["alarms"] = list(self.upkeep.alarms)
        return document

    @classmethod
    def from_json(cls, document: JsonObject) -> "SessionResult":
        """Read what `to_json` wrote."""
        upkeep = Upkeep(
            document["action"], document["cpu_s"], document["moved"], tuple(document["alarms"])
        )
        recall: dict[Measure, RecallFigures] = {}
        for measure in MEASURES:
            recall[measure] = document[measure]
        return cls(
            document["session"],
            document["later_share"],
            document.get("images", 0),
            recall,
            upkeep,
        )


@dataclass(frozen=True, slots=True)
class BackwardTransfer:
    """Mean change of an image's R@10 from its own session to the end, as a share.

    Negative where images are forgotten.
    """

    ours: float
    dense: float
    """By exact dense search, where only the growing gallery can change it."""


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """All sessions of one policy on one stream."""

    policy: str
    stream: StreamKind
    seed: int
    config: StreamConfig
    beams: int
    sessions: tuple[SessionResult, ...]
    backward_transfer: BackwardTransfer

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all upkeep."""
        return sum(session.upkeep.cpu_s for session in self.sessions)

    def recall(self, measure: Measure, figure: str = "R@10") -> list[float]:
        """One recall figure of each session, as shares."""
        return [session.recall[measure][figure] for session in self.sessions]

    def mean_recall(self, measure: Measure, figure: str = "R@10") -> float:
        """Mean of that figure over all sessions."""
        return float(np.mean(self.recall(measure, figure)))

    def to_json(self) -> JsonObject:
        """The document of a run file."""
        return {
            "stream": self.stream,
            "seed": self.seed,
            "policy": self.policy,
            "config": {**asdict(self.config), "beams": self.beams},
            "sessions": [session.to_json() for session in self.sessions],
            "backward_transfer": asdict(self.backward_transfer),
        }

    @classmethod
    def from_json(cls, document: JsonObject) -> "PolicyRun":
        """Read what `to_json` wrote, now or earlier: settings unknown today are left out."""
        stored = document["config"]
        # A field added since then takes its default; a field removed since then is ignored.
        sizes: JsonObject = {}
        for setting in fields(StreamConfig):
            if setting.name in stored:
                sizes[setting.name] = stored[setting.name]
        transfer = document["backward_transfer"]
        return cls(
            policy=document["policy"],
            stream=document["stream"],
            seed=document["seed"],
            config=StreamConfig(**sizes),
            beams=stored["beams"],
            sessions=tuple(SessionResult.from_json(session) for session in document["sessions"]),
            backward_transfer=BackwardTransfer(transfer["ours"], transfer["dense"]),
        )


def run_file(results: Path, kind: StreamKind, seed: int, policy: str) -> Path:
    """Return where the run of a policy on a stream is stored below the folder of the results."""
    return results / RUNS_FOLDER / f"{kind}-{seed}-{policy}.json"


def write_run(results: Path, run: PolicyRun) -> None:
    """Store a run.

    Its file appears whole or not at all, because a run that has a file is not repeated.
    """
    path = run_file(results, run.stream, run.seed, run.policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not *.json, so that no reader takes a half-written file for a run.
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(run.to_json()) + "\n", encoding="utf-8")
    partial.replace(path)


def read_runs(results: Path) -> list[PolicyRun]:
    """Read all runs, in the order of their file names."""
    return [_read_run(path) for path in sorted((results / RUNS_FOLDER).glob("*.json"))]


def _read_run(path: Path) -> PolicyRun:
    try:
        return PolicyRun.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} must be a run of the study, got {error!r}; delete it and run the study again"
        ) from error
