"""The paper's experiments at a reduced size: they run and leave their pages."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.identifiers.rivals.schemes import SCHEMES
from model.progress import quiet
from ops.demo.contact_sheet import AnsweredRow, draw_sheet
from ops.study.ablation import VARIANTS
from ops.study.cases import Case, good_and_bad
from ops.study.explanations import exchanged
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
    # Without a suffix a leaf names all its images at once.
    four = rows["SIGMA, four codes"]
    assert four["passes"] == 4.0
    assert four["candidates"] > rows["SIGMA, five tokens (the paper)"]["candidates"]
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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where explanations and cases have one training together."""
    return tmp_path_factory.mktemp("home")


def test_identifiers_are_explained_level_by_level_with_examples(
    tmp_path: Path, models: Path
) -> None:
    table = run("explain", models)
    table.write(tmp_path)
    rows = figures_of(table)
    levels = ["id1", "id1 id2", "id1 id2 id3", "id1 id2 id3 id4"]
    assert list(rows) == ["no code", *levels]
    prefixes = [rows[name]["prefixes"] for name in levels]
    assert prefixes == sorted(prefixes)
    assert prefixes[0] > 1
    cosines = [row["cosine"] for row in rows.values()]
    # The longer a prefix, the more alike is what lies below it.
    assert cosines == sorted(cosines)
    assert all(0 <= rows[name]["own"] <= 10 for name in levels)
    document = json.loads((tmp_path / "explain.json").read_text(encoding="utf-8"))
    first = document["examples"][0]
    assert [len(level["codes"]) for level in first["said"]] == [1, 2, 3, 4]
    assert len(first["written"]) == 3
    page = (tmp_path / "explain.md").read_text(encoding="utf-8")
    assert f"- written: {first['written'][0]}" in page
    assert str(first["said"][3]["codes"]) + ":" in page


def test_another_image_is_one_with_another_prefix() -> None:
    prefixes = [(1,), (1,), (2,), (1,)]
    assert exchanged(prefixes, [3, 1, 0, 2]) == [2, 2, 3, 2]
    assert exchanged([(1,), (1,)], [0, 1]) == [0, 1]


def test_cases_have_pictures_and_their_places_are_those_of_the_document(
    tmp_path: Path, models: Path
) -> None:
    table = run("cases", models)
    assert len(list((models / "models").glob("product-*"))) == 1
    table.write(tmp_path)
    rows = figures_of(table)
    assert rows["SIGMA"]["unseen R@10"] >= 0.8
    document = json.loads((tmp_path / "cases.json").read_text(encoding="utf-8"))
    page = (tmp_path / "cases.md").read_text(encoding="utf-8")
    for case in document["examples"]:
        found = case["found"]
        if case["rank"] is not None and case["rank"] <= len(found):
            assert found[case["rank"] - 1] == case["image"]
        else:
            assert case["image"] not in found
        assert f"- {case['query']}: " in page
    good = [case for case in document["examples"] if case["rank"] == 1]
    assert good
    with Image.open(tmp_path / "cases-good.png") as sheet:
        # A row for each case.
        assert sheet.height == draw_sheet([AnsweredRow("", [], [""])] * len(good)).height
        assert len(sheet.getcolors(256) or []) > 10
    assert (tmp_path / "cases-good.png").stat().st_size < 300_000


def test_bad_cases_are_those_farthest_back_and_first_those_that_exact_search_finds() -> None:
    nothing = np.zeros(0, np.int64)
    codes = np.zeros((0, 4), np.int64)
    ranks = [(1, 1), (3, 1), (None, None), (None, 2), (2, 1), (1, 4)]
    found = [
        Case(number, "", nothing, codes, rank, dense) for number, (rank, dense) in enumerate(ranks)
    ]
    good, bad = good_and_bad(found)
    assert [case.number for case in good] == [0, 5]
    assert [case.number for case in bad] == [3, 2, 1, 4]


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
