"""The long-run study at a reduced size: it runs, resumes where it stopped, and makes its pages."""

from pathlib import Path

from model.progress import quiet
from ops.study.longrun import REDUCED, longrun, publish, runs_of


def test_a_reduced_study_runs_resumes_and_leaves_tables_and_plots(tmp_path: Path) -> None:
    longrun(REDUCED, tmp_path, quiet)
    runs = {run["policy"]: run for run in runs_of(tmp_path)}
    assert set(runs) == set(REDUCED.policies)
    for run in runs.values():
        assert len(run["sessions"]) == REDUCED.stream.sessions
        assert all(
            0 <= one["old"]["R@10"] <= one["dense_old"]["R@10"] + 0.2 for one in run["sessions"]
        )
    # All policies saw the same first session, before any of them did anything.
    assert len({run["sessions"][0]["at_arrival"]["R@10"] for run in runs.values()}) == 1

    kept = (tmp_path / "runs" / "abrupt-0-never.json").read_bytes()
    (tmp_path / "runs" / "abrupt-0-never.json").unlink()
    document = longrun(REDUCED, tmp_path, quiet)
    again = (tmp_path / "runs" / "abrupt-0-never.json").read_bytes()
    assert again == kept, "the same seed gives the same run"

    publish(document, tmp_path)
    assert "| never |" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    for name in ("new.svg", "at-arrival.svg", "old.svg", "cost.svg"):
        assert (tmp_path / name).read_text(encoding="utf-8").count("<path") > 20, name
