"""The table of a study: figures over seeds, as a page and as a document."""

import json
from pathlib import Path

from ops.study.retrieval_table import published_table
from ops.study.study_table import Column, StudyTable


def table(seeds: tuple[int, ...]) -> StudyTable:
    figures = [{"hit": 0.5 + 0.1 * seed, "ms": 3.0} for seed in seeds]
    return StudyTable(
        name="example",
        title="An example",
        setting="Nothing was trained.",
        seeds=seeds,
        columns=(Column("R@1", "hit"), Column("ms", "ms", 1.0, 0), Column("none", "none")),
        rows={"ours": figures, "theirs": [{"hit": None} for _ in seeds]},
        notes={"theirs": "nothing was found"},
        deviations=("it is small",),
        published=("Published: 42.",),
    )


def test_a_page_has_means_and_deviations_over_seeds_and_a_dash_for_what_is_unknown() -> None:
    page = table((0, 2)).to_markdown()
    assert "| ours | 60.0 ± 10.0 | 3 ± 0 | – |" in page
    assert "| theirs | – | – | – |" in page
    assert page.index("it is small") < page.index("Published: 42.")


def test_a_single_run_has_no_deviation_and_says_so(tmp_path: Path) -> None:
    only = table((0,))
    only.write(tmp_path)
    page = (tmp_path / "example.md").read_text(encoding="utf-8")
    assert "| ours | 50.0 | 3 | – |" in page
    assert "single runs" in page
    document = json.loads((tmp_path / "example.json").read_text(encoding="utf-8"))
    assert document["rows"]["ours"] == [{"hit": 0.5, "ms": 3.0}]


def test_the_published_table_has_all_systems_with_six_figures() -> None:
    head, rule, *rows = published_table()[2:]
    assert len(rows) == 17
    assert {line.count("|") for line in (head, rule, *rows)} == {8}
    assert "| AVG | 62.8 | 85.4 | - | 31.3 | 58.0 | - |" in rows
