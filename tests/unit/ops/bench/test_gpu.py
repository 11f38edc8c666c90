"""The GPU benchmark in miniature, and that it claims no figure of a GPU."""

import pytest
import torch

from ops.bench import gpu


def test_the_miniature_runs_and_says_that_no_gpu_figure_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "_IN_MINIATURE", (2, 1))
    monkeypatch.setattr(gpu, "_IMAGES", 500)
    document = gpu.gpu_bench(0, torch.device("cpu"))
    assert (document["device"], document["is_gpu"]) == ("cpu", False)
    assert "no figure of a GPU exists" in gpu.as_text(document)
    assert [figures["beams"] for figures in document["queries"]] == [10, 20]
    # A query reads its prompt's mask and its beams; what it counts is more than nothing.
    assert all(1 <= figures["synchronisations"] < 100 for figures in document["queries"])
    assert document["training"]["ratio"] == pytest.approx(1, abs=0.15)
