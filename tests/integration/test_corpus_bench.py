"""`sigma bench corpus` on a dozen pictures, from training to the table that is kept."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from model.progress import quiet
from model.training.adapt import AdaptConfig
from ops.bench.corpus import CorpusBenchConfig, bench_corpus
from ops.bench.corpus_manifests import read_corpus
from ops.bench.corpus_page import keep_run, kept_runs
from ops.bench.corpus_sheet import SheetConfig
from ops.demo.contact_sheet import GAP_PX, PICTURES, TILE_PX
from tests.integration.small_training import request, tiny_services
from tests.unit.model.conftest import TEXTS, pictures
from workers.repository.connection import Connection

# A manifest of a part of the corpus: name, images, whether their captions may be read.
Write = Callable[[str, int, bool], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def part(name: str, count: int, told: bool) -> Path:
        lines: list[str] = []
        for number, pixels in enumerate(pictures(count, seed=len(name))):
            file = tmp_path / f"{name}-{number}.png"
            Image.fromarray(pixels).save(file)
            text = TEXTS[number % len(TEXTS)]
            row = {"image_id": f"{name}/{number}", "path": file.name, "test_captions": [text]}
            if told or (name == "shift" and number % 2):
                row["captions"] = [text, f"{text} again"]
            lines.append(json.dumps(row))
        manifest = tmp_path / f"{name}.jsonl"
        manifest.write_text("\n".join(lines), encoding="utf-8")
        return manifest

    return part


def test_a_corpus_is_trained_streamed_refreshed_and_asked(
    tmp_path: Path, database: str, conn: Connection, write: Write
) -> None:
    services = tiny_services(tmp_path / "home", database)
    corpus = read_corpus(
        [write("train", 8, True), write("stream", 3, False), write("shift", 4, False)]
    )
    (tmp_path / "stream-2.png").unlink()
    sheet = SheetConfig(tmp_path / "sheets" / "answers.png", rows=2)
    config = CorpusBenchConfig(
        request(services, seed=3), sheet=sheet, adapted=AdaptConfig(contrastive_views=8)
    )
    result = bench_corpus(services, corpus, config, quiet)

    assert result.groups.keys() == {
        "seen",
        "unseen",
        "shift_before",
        "shift_after",
        "shift_told",
        "unseen_after",
    }
    assert result.groups["unseen"].queries == 2
    assert result.groups["shift_after"].queries == 2
    assert result.groups["unseen"].gallery == 14
    # Exact search looks at all of them: twelve images, twenty places.
    assert result.groups["unseen"].dense["R@20"] == 1.0
    adapted = result.groups["unseen"].adapted
    assert adapted is not None
    assert adapted["R@20"] == 1.0
    assert result.groups["shift_after"].adapted is None
    assert list(result.rejected) == [str(tmp_path / "stream-2.png")]
    assert result.captions is not None
    assert result.captions.split == "unseen"
    assert set(result.steps) == {
        "train",
        "stream",
        "shift",
        "ask",
        "captions",
        "adapt tiny",
        "refresh",
        "ask again",
    }
    assert result.total.cpu_s > 0

    page = keep_run(result, tmp_path / "docs")
    assert kept_runs(tmp_path / "docs") == [result]
    text = page.read_text(encoding="utf-8")
    assert "| arrived later | 2 |" in text
    assert "1 pictures cannot be used" in text
    with Image.open(sheet.file) as drawn:
        assert drawn.width == GAP_PX + PICTURES * (TILE_PX + GAP_PX)
