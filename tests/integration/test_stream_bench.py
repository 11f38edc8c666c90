"""The stream benchmark in miniature: ours and the peers on the same steps."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.checkpoint import Checkpoint
from model.network.parts import parts_from_base
from model.progress import quiet
from ops import peer_library
from ops.bench.runbook import Runbook, RunbookStep, churn_runbook, final_runbook
from ops.bench.runbook_images import clustered, draw_images
from ops.bench.runbook_result import IndexResult, RunbookResult
from ops.bench.stream import StreamBenchConfig, bench_stream
from schemas.errors import RefuseToStartError
from schemas.retrieval_settings import RetrievalSettings
from tests.unit.model.conftest import small_base, small_profile

IMAGES = 120
QUERIES = 12
EVERY_LEAF = RetrievalSettings(beams=72)
"""As many beams as the small shape has leaves: all images are reached."""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """Random weights: what is searched is right all the same, where every leaf is reached."""
    parts = parts_from_base(small_base(), small_profile())
    vectors = np.random.default_rng(0).standard_normal((60, 24)).astype(np.float32)
    codebook = fit_codebook(vectors, CodebookConfig(small_profile().shape))
    return Checkpoint(parts.sigma, codebook, parts.encoder)


def require_peers() -> None:
    for name in ("faiss", "hnswlib", "usearch"):
        if importlib.util.find_spec(name) is None:
            assert not os.environ.get("CI"), f"{name} must be installed in CI (make test does)"
            pytest.skip(f"{name} is not installed")


def run(
    checkpoint: Checkpoint, runbook: Runbook | None, config: StreamBenchConfig
) -> RunbookResult:
    images = draw_images(IMAGES, QUERIES, 0, checkpoint.encoder, quiet)
    images, sizes = clustered(images, 4, 0)
    chosen = runbook or final_runbook(sizes, 0)
    return bench_stream(chosen, images, checkpoint, 0, config, quiet)


def by_name(result: RunbookResult) -> dict[str, IndexResult]:
    return {index.name: index for index in result.indexes}


def test_all_indexes_take_the_same_steps_and_exact_neighbours_are_found(
    checkpoint: Checkpoint,
) -> None:
    require_peers()
    result = run(checkpoint, None, StreamBenchConfig(EVERY_LEAF))
    indexes = by_name(result)
    assert set(indexes) == {
        "exact search",
        "sigma",
        "sigma, by cosine",
        "hnswlib",
        "usearch",
        "FAISS IVF-PQ",
        "FAISS IVF-PQ, re-ranked",
    }
    alive = [search.alive for search in indexes["exact search"].searches]
    for index in result.indexes:
        assert [search.alive for search in index.searches] == alive
        assert len(index.changes_s) == 40
        assert index.bytes > 0
    # Vectors are stored in half precision, so equal ones may change places.
    assert indexes["sigma, by cosine"].worst_recall >= 0.95
    for name in ("hnswlib", "usearch"):
        assert indexes[name].mean_recall >= 0.95, name
    assert indexes["FAISS IVF-PQ, re-ranked"].mean_recall >= indexes["FAISS IVF-PQ"].mean_recall
    assert "| hnswlib |" in result.to_markdown()
    assert len(result.to_json()["indexes"]) == 7


def test_what_was_deleted_is_not_found_and_captions_of_it_are_not_counted(
    checkpoint: Checkpoint,
) -> None:
    steps = (
        RunbookStep("insert", 0, IMAGES),
        RunbookStep("search"),
        RunbookStep("delete", 0, IMAGES),
        RunbookStep("search"),
    )
    result = run(checkpoint, Runbook("all", steps), StreamBenchConfig(EVERY_LEAF, with_peers=False))
    ours = by_name(result)["sigma"]
    first, last = ours.searches
    assert (first.alive, last.alive) == (IMAGES, 0)
    assert 0 < first.candidates <= IMAGES
    assert last.candidates == 0
    assert first.caption_recall_10 is not None
    assert last.caption_recall_10 is None


def test_the_churn_of_a_small_gallery_loses_nothing_where_every_leaf_is_reached(
    checkpoint: Checkpoint,
) -> None:
    config = StreamBenchConfig(EVERY_LEAF, with_peers=False)
    result = run(checkpoint, churn_runbook(IMAGES), config)
    assert abs(by_name(result)["sigma, by cosine"].lost) <= 0.05


def test_a_peer_that_is_not_installed_is_named(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(peer_library.importlib, "import_module", absent)
    with pytest.raises(RefuseToStartError, match=r"install sigma-stream\[bench\].*--alone"):
        run(checkpoint, None, StreamBenchConfig())
