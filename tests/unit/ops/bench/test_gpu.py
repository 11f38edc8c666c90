"""The GPU benchmark in miniature, and that it claims no figure of a GPU."""

import pytest
import torch

from ops.bench.gpu.command import Size, as_text, gpu_bench

SMALL = Size(
    images=500,
    searches=2,
    batches=(2,),
    training_steps=1,
    micro_batches=(8,),
    assigned=(2,),
    repeats=2,
)


def test_the_miniature_runs_and_says_that_no_gpu_figure_exists() -> None:
    document = gpu_bench(0, ["qwen-3b"], SMALL, torch.device("cpu"))
    assert (document["device"], document["is_gpu"]) == ("cpu", False)
    assert "no figure of a GPU exists" in as_text(document)
    figures = document["models"]["qwen-3b"]
    rows = [(row["beams"], row["batch"], row["guided"]) for row in figures["queries"]]
    assert rows == [(10, 1, False), (20, 1, False), (10, 1, True), (20, 1, True), (20, 2, False)]
    # A query reads its prompt's mask and its beams; what it counts is more than nothing.
    assert all(1 <= row["synchronisations"] < 100 for row in figures["queries"])
    assert figures["assignment"][0]["images_per_s"] > 0
    for training in figures["training"]:
        assert training["ratio"] == pytest.approx(1, abs=0.15)
        first, last = training["losses"]
        assert 0 < last < first
