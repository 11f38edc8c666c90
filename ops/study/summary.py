"""The summary of a study: figures of each stream and policy, means over seeds, and the answers."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ops.study.answers import Answer, answer_questions
from ops.study.spread import Spread
from ops.study.study_runs import MEASURES, PolicyRun
from schemas.records import JsonObject

# Recall figures of each measure.
RECALL_NAMES = ("R@1", "R@5", "R@10")

# Sessions at the end whose recall is summarised apart: where the policies have led.
_LAST_SESSIONS = 5

# Figures of a policy on a stream, over seeds, by their name in `summary.json`.
PolicyFigures = Mapping[str, Spread]


@dataclass(frozen=True, slots=True)
class StudySummary:
    """What the study found."""

    seeds: tuple[int, ...]
    streams: Mapping[str, Mapping[str, PolicyFigures]]
    """Kind of stream → policy → figures."""
    answers: tuple[Answer, ...]

    def to_json(self) -> JsonObject:
        """The document of `summary.json`."""
        streams: dict[str, JsonObject] = {}
        for kind, policies in self.streams.items():
            streams[kind] = {}
            for policy, figures in policies.items():
                streams[kind][policy] = _figures_to_json(figures)
        answers: JsonObject = {}
        for answer in self.answers:
            answers[answer.question] = answer.to_json()
        return {"seeds": list(self.seeds), "streams": streams, "answers": answers}


def summarise(runs: Sequence[PolicyRun]) -> StudySummary:
    """Summarise runs of any streams, seeds and policies."""
    groups: dict[tuple[str, str], list[PolicyRun]] = defaultdict(list)
    for run in runs:
        groups[run.stream, run.policy].append(run)
    # Sorted, so that the same runs give the same file whatever the order of the folder.
    streams: dict[str, dict[str, PolicyFigures]] = defaultdict(dict)
    for (stream, policy), members in sorted(groups.items()):
        streams[stream][policy] = _policy_figures(members)
    seeds = sorted({run.seed for run in runs})
    return StudySummary(tuple(seeds), dict(streams), answer_questions(runs))


def _figures_to_json(figures: PolicyFigures) -> dict[str, dict[str, float]]:
    return {name: spread.to_json() for name, spread in figures.items()}


def _policy_figures(runs: Sequence[PolicyRun]) -> PolicyFigures:
    """Figures of runs that differ in their seed only."""
    figures: dict[str, Spread] = {}
    for measure in MEASURES:
        for name in RECALL_NAMES:
            means = [run.mean_recall(measure, name) for run in runs]
            figures[f"{measure} {name}"] = Spread.of(means)
    for name, figure in _RUN_FIGURES.items():
        figures[name] = Spread.of([figure(run) for run in runs])
    return figures


def _last_new_recall(run: PolicyRun) -> float:
    return float(np.mean(run.recall("new")[-_LAST_SESSIONS:]))


def _last_old_recall(run: PolicyRun) -> float:
    return float(np.mean(run.recall("old")[-_LAST_SESSIONS:]))


def _new_image_ratio(run: PolicyRun) -> float:
    """Recall of images at arrival, without training, as a share of the recall of older ones."""
    return run.mean_recall("at_arrival") / run.mean_recall("old")


def _backward_transfer(run: PolicyRun) -> float:
    return run.backward_transfer.ours


def _dense_backward_transfer(run: PolicyRun) -> float:
    return run.backward_transfer.dense


def _cpu_s(run: PolicyRun) -> float:
    return run.cpu_s


def _count_upkeeps(run: PolicyRun) -> int:
    return sum(bool(session.upkeep.action) for session in run.sessions)


def _moved_per_upkeep(run: PolicyRun) -> float:
    # Sessions without an upkeep move nothing, and would only dilute the mean.
    moved = [session.upkeep.moved for session in run.sessions if session.upkeep.action]
    return float(np.mean(moved)) if moved else 0.0


def _count_alarms(run: PolicyRun) -> int:
    return sum(bool(session.upkeep.alarms) for session in run.sessions)


# Figures of one run beside recall, by their name in `summary.json`.
_RUN_FIGURES: Mapping[str, Callable[[PolicyRun], float]] = {
    "last five, new R@10": _last_new_recall,
    "last five, old R@10": _last_old_recall,
    "new-image ratio": _new_image_ratio,
    "backward transfer": _backward_transfer,
    "backward transfer, dense": _dense_backward_transfer,
    "cpu_s": _cpu_s,
    "upkeeps": _count_upkeeps,
    "moved per upkeep": _moved_per_upkeep,
    "sessions with alarms": _count_alarms,
}
