"""The summary of a study: its answers and tables; the stored ones follow from the stored runs."""

import json
from pathlib import Path

import pytest

from ops.cli.measure import STUDY_OUT, STUDY_RESULTS
from ops.study.spread import Spread
from ops.study.streams import StreamConfig, StreamKind
from ops.study.study_runs import (
    MEASURES,
    BackwardTransfer,
    PolicyRun,
    SessionResult,
    Upkeep,
    read_runs,
)
from ops.study.summary import StudySummary, summarise
from ops.study.tables import summary_page

ROOT = Path(__file__).parents[4]


def one_session_run(
    stream: StreamKind, policy: str, recall: float, cpu_s: float, action: str, transfer: float
) -> PolicyRun:
    session = SessionResult(
        session=1,
        later_share=0.6,
        images=10,
        recall=dict.fromkeys(MEASURES, dict.fromkeys(("R@1", "R@5", "R@10"), recall)),
        upkeep=Upkeep(action, cpu_s, alarms=("novelty",)),
    )
    return PolicyRun(
        policy=policy,
        stream=stream,
        seed=0,
        config=StreamConfig(stream),
        beams=20,
        sessions=(session,),
        backward_transfer=BackwardTransfer(ours=transfer, dense=0.0),
    )


def figure(summary: StudySummary, question: str) -> float:
    for answer in summary.answers:
        if answer.question == question and answer.figure is not None:
            return answer.figure.mean
    raise AssertionError(f"no answer to {question!r}")


def test_the_answers_compare_each_policy_with_full_retraining() -> None:
    summary = summarise(
        [
            one_session_run("abrupt", "drift", 0.9, 2.0, "refresh", 0.01),
            one_session_run("abrupt", "full", 0.9, 20.0, "full", 0.02),
            one_session_run("stationary", "never", 0.8, 0.0, "", -0.05),
            one_session_run("stationary", "full", 1.0, 20.0, "full", 0.0),
        ]
    )
    cost = figure(summary, "refresh on drift to full, CPU seconds of one upkeep")
    assert cost == pytest.approx(0.1)
    recall = figure(summary, "refresh on drift to full, R@10 after a shifted session")
    assert recall == pytest.approx(1.0)
    untrained = figure(summary, "new images without training to full retraining, stationary R@10")
    assert untrained == pytest.approx(0.8)
    forgetting = summary.answers[-1]
    assert forgetting.question == "forgetting under the best policy, points of R@10"
    assert forgetting.policy == "drift"
    assert forgetting.figure == Spread(mean=-1.0, sd=0.0)
    assert "| exact dense |" in summary_page(summary)


def test_a_question_whose_runs_are_missing_has_no_answer() -> None:
    summary = summarise([one_session_run("abrupt", "full", 0.9, 20.0, "full", 0.02)])
    assert all(answer.figure is None for answer in summary.answers)
    assert set(summary.to_json()["answers"].values()) == {None}


def test_the_stored_tables_follow_from_the_stored_runs() -> None:
    summary = summarise(read_runs(ROOT / STUDY_RESULTS))
    stored = json.loads((ROOT / STUDY_RESULTS / "summary.json").read_text(encoding="utf-8"))
    assert summary.to_json() == stored
    tables = (ROOT / STUDY_OUT / "summary.md").read_text(encoding="utf-8")
    assert summary_page(summary) == tables
