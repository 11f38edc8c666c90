"""The paper's experiments at a reduced size: they run and leave their pages."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from model.identifiers.rivals.schemes import SCHEMES
from model.progress import quiet
from ops.study.ablation import VARIANTS
from ops.study.paper_sizes import REDUCED
from ops.study.paper_studies import paper_study
from ops.study.speed import REDUCED_SPEED
from ops.study.study_config import study_profile
from ops.study.study_table import StudyTable


def run(name: str, home: Path) -> StudyTable:
    return paper_study(name, 1, True, home / "models", quiet)


def figures_of(table: StudyTable) -> dict[str, dict[str, float]]:
    """The figures of the only seed; all shares are between 0 and 1."""
    rows: dict[str, dict[str, float]] = {}
    for name, seeds in table.rows.items():
        assert len(seeds) == 1
        rows[name] = {key: value for key, value in seeds[0].items() if value is not None}
        for figure, value in rows[name].items():
            assert "R@" not in figure or 0.0 <= value <= 1.0, (name, figure)
    return rows


def test_every_rival_is_trained_and_asked_and_later_images_are_found_by_those_that_can(
    tmp_path: Path,
) -> None:
    table = run("rivals", tmp_path)
    table.write(tmp_path)
    rows = figures_of(table)
    assert {scheme.name for scheme in SCHEMES} < set(rows)
    assert rows["GRACE atomic"]["unseen R@10"] == 0.0
    assert rows["GRACE atomic"]["passes"] == 1.0
    assert rows["SIGMA, five tokens (the paper)"]["passes"] == 5.0
    assert all(0.0 <= row["invalid"] <= 1.0 for row in rows.values() if "invalid" in row)
    # The product scores most of so small a gallery, so it finds what the encoder finds.
    assert rows["SIGMA, as the product searches"]["unseen R@10"] >= 0.8
    document = json.loads((tmp_path / "rivals.json").read_text(encoding="utf-8"))
    assert document["seeds"] == [0]
    page = (tmp_path / "rivals.md").read_text(encoding="utf-8")
    assert "| GRACE atomic |" in page
    assert "a later image has no token" in page


def test_each_part_is_left_out_once(tmp_path: Path) -> None:
    rows = figures_of(run("ablation", tmp_path))
    assert set(rows) == {
        "SIGMA",
        "without memorisation",
        "without comprehension",
        "without soft labels",
        "without replay",
        "without stage 0",
        "without alternates",
        "without leaf ranking",
        "exact dense search",
    }
    whole, unranked = rows["SIGMA"], rows["without leaf ranking"]
    assert unranked["unseen R@10"] == whole["five unseen R@10"]
    # A query ranks as many postings as before, each of another image.
    assert rows["without alternates"]["candidates"] > whole["candidates"]
    # Recall can be equal after so short a training; what was trained is not.
    profiles = [vary(study_profile()) for vary in VARIANTS.values()]
    assert len(set(map(repr, profiles))) == len(VARIANTS) == 5


def test_a_cold_start_indexes_near_and_far_images_beside_the_trained_ones(tmp_path: Path) -> None:
    table = run("coldstart", tmp_path)
    rows = figures_of(table)
    dense = rows["exact dense search"]
    assert dense["near R@10"] > dense["far R@10"], "the encoder never saw the later words"
    assert dense["candidates"] == REDUCED.trained + REDUCED.later
    assert "56.4 / 71.2 / 84.0" in table.to_markdown()


def test_the_test_gallery_alone_is_asked_with_five_captions_an_image(tmp_path: Path) -> None:
    table = run("main", tmp_path)
    rows = figures_of(table)
    assert rows["exact dense search"]["candidates"] == REDUCED.later
    assert rows["SIGMA, as the product searches"]["test R@10"] >= 0.8
    page = table.to_markdown()
    assert "| SIGMA | 77.4 | 92.5 | 97.2 | 49.3 | 72.6 | 79.5 |" in page
    assert "| GRACE-numeric |" in page


@pytest.mark.parametrize("name", ["latency", "throughput"])
def test_queries_are_timed_in_galleries_of_several_sizes(tmp_path: Path, name: str) -> None:
    if importlib.util.find_spec("faiss") is None:
        assert not os.environ.get("CI"), "faiss must be installed in CI (make test does)"
        pytest.skip("faiss is not installed")
    rows = run(name, tmp_path).rows
    assert len(rows) == 6
    for figures in rows.values():
        assert set(figures[0]) == {str(size) for size in REDUCED_SPEED.galleries}
        assert all(value is not None and value > 0 for value in figures[0].values())
