"""The answers of a study: policies compared with full retraining, seed by seed."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ops.study.spread import Spread
from ops.study.streams import StreamKind
from ops.study.study_runs import PolicyRun, SessionResult
from schemas.records import JsonObject

# The policy that others are compared with.
_UPPER_BOUND = "full"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question of the study."""

    question: str
    figure: Spread | None
    """None when a run that the answer needs is missing."""
    policy: str | None = None
    """The policy that the figure belongs to, where the question asks for one."""

    def to_json(self) -> JsonObject | None:
        """One value of `answers` in `summary.json`."""
        if self.figure is None:
            return None
        if self.policy is None:
            return dict(self.figure.to_json())
        return {"policy": self.policy, **self.figure.to_json()}


def answer_questions(runs: Sequence[PolicyRun]) -> tuple[Answer, ...]:
    """Answer what the study was made for, as far as the runs allow."""
    periodic = _pairs_with_full(runs, "abrupt", "periodic")
    drift = _pairs_with_full(runs, "abrupt", "drift")
    stationary = _pairs_with_full(runs, "stationary", "never")
    return (
        Answer(
            "periodic refresh to full, CPU seconds of one upkeep",
            _over_seeds(periodic, _upkeep_cost_ratio),
        ),
        Answer(
            "periodic refresh to full, R@10 after a shifted session",
            _over_seeds(periodic, _shifted_recall_ratio),
        ),
        Answer(
            "refresh on drift to full, CPU seconds of one upkeep",
            _over_seeds(drift, _upkeep_cost_ratio),
        ),
        Answer(
            "refresh on drift to full, R@10 after a shifted session",
            _over_seeds(drift, _shifted_recall_ratio),
        ),
        Answer(
            "new images without training to full retraining, stationary R@10",
            _over_seeds(stationary, _untrained_recall_ratio),
        ),
        _least_forgetting("forgetting under the best policy, points of R@10", runs),
    )


@dataclass(frozen=True, slots=True)
class _RunPair:
    """A policy and full retraining on the same stream of the same seed."""

    policy: PolicyRun
    full: PolicyRun

    @property
    def sessions(self) -> list[tuple[SessionResult, SessionResult]]:
        """Each session under the policy, and the same under full retraining."""
        return list(zip(self.policy.sessions, self.full.sessions, strict=True))


def _pairs_with_full(
    runs: Sequence[PolicyRun], kind: StreamKind, policy: str
) -> Sequence[_RunPair]:
    """Pairs of all seeds that have both runs, in the order of seeds."""
    by_seed: dict[int, dict[str, PolicyRun]] = defaultdict(dict)
    for run in runs:
        if run.stream == kind:
            by_seed[run.seed][run.policy] = run
    pairs = []
    # Means and deviations depend on the order of their terms in the last digit.
    for _, policies in sorted(by_seed.items()):
        if policy in policies and _UPPER_BOUND in policies:
            pairs.append(_RunPair(policies[policy], policies[_UPPER_BOUND]))
    return pairs


def _over_seeds(
    pairs: Sequence[_RunPair], ratio: Callable[[_RunPair], float | None]
) -> Spread | None:
    values = []
    for pair in pairs:
        value = ratio(pair)
        if value is not None:
            values.append(value)
    return Spread.of(values) if values else None


def _upkeep_cost_ratio(pair: _RunPair) -> float | None:
    """CPU seconds of the policy's upkeeps, to those of full retraining in the same sessions."""
    cost = 0.0
    full_cost = 0.0
    for session, full_session in pair.sessions:
        if session.upkeep.action:
            cost += session.upkeep.cpu_s
            full_cost += full_session.upkeep.cpu_s
    return cost / full_cost if full_cost else None


def _shifted_recall_ratio(pair: _RunPair) -> float | None:
    """R@10 after the policy's upkeeps in shifted sessions, to that of full retraining.

    New and old images count alike.
    """
    recall = 0.0
    full_recall = 0.0
    for session, full_session in pair.sessions:
        if session.upkeep.action and session.later_share > 0:
            recall += session.recall["new"]["R@10"] + session.recall["old"]["R@10"]
            full_recall += full_session.recall["new"]["R@10"] + full_session.recall["old"]["R@10"]
    return recall / full_recall if full_recall else None


def _untrained_recall_ratio(pair: _RunPair) -> float:
    """R@10 at arrival without any training, to that of new images after full retraining."""
    return pair.policy.mean_recall("at_arrival") / pair.full.mean_recall("new")


def _least_forgetting(question: str, runs: Sequence[PolicyRun]) -> Answer:
    """Of the policies that train less than every session, the one that forgets least.

    Over all streams, in points of R@10: negative where images are found better than before.
    """
    transfers = _backward_transfers(runs)
    if not transfers:
        return Answer(question, None)
    # The largest transfer: forgetting is negative.
    best = max(transfers, key=lambda policy: float(np.mean(transfers[policy])))
    points = [-100 * transfer for transfer in transfers[best]]
    return Answer(question, Spread.of(points), best)


def _backward_transfers(runs: Sequence[PolicyRun]) -> Mapping[str, list[float]]:
    """Backward transfer of all streams and seeds, by policy."""
    transfers: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        if run.policy != _UPPER_BOUND:
            transfers[run.policy].append(run.backward_transfer.ours)
    return transfers
