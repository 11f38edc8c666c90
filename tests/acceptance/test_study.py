"""The long-run study at a reduced size: it runs, resumes where it stopped, and makes its pages."""

from pathlib import Path

from model.progress import quiet
from ops.study.longrun import longrun, publish
from ops.study.study_config import REDUCED
from ops.study.study_runs import read_runs, run_file


def test_a_reduced_study_runs_resumes_and_leaves_tables_and_plots(tmp_path: Path) -> None:
    results = tmp_path / "results"
    out = tmp_path / "out"
    longrun(REDUCED, results, quiet)
    runs = {run.policy: run for run in read_runs(results)}
    assert set(runs) == set(REDUCED.policies)
    for run in runs.values():
        assert len(run.sessions) == REDUCED.stream.sessions
        for recall, dense in zip(run.recall("old"), run.recall("dense_old"), strict=True):
            assert 0 <= recall <= dense + 0.2
    # All policies saw the same first session, before any of them did anything.
    assert len({run.recall("at_arrival")[0] for run in runs.values()}) == 1

    never = run_file(results, "abrupt", 0, "never")
    first_time = never.read_bytes()
    never.unlink()
    summary = longrun(REDUCED, results, quiet)
    assert never.read_bytes() == first_time, "the same seed gives the same run"

    publish(summary, results, out)
    assert '"seeds"' in (results / "summary.json").read_text(encoding="utf-8")
    assert "| never |" in (out / "summary.md").read_text(encoding="utf-8")
    for name in ("new.svg", "at-arrival.svg", "old.svg", "cost.svg"):
        assert (out / name).read_text(encoding="utf-8").count("<path") > 20, name
