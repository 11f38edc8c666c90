"""One encoder a process: generations of one encoder share it, and the last one takes it along."""

import gc
import shutil
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.checkpoint import Checkpoint, load_checkpoint, load_sigma, save_checkpoint
from model.network.encoders import kept
from model.network.encoders.pretrained import PretrainedEncoder
from model.network.encoders.reader import open_encoder, read_encoder
from model.network.parts import ModelParts
from tests import vl_checkpoints


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that encoders are read from by checkpoints, in order."""
    read: list[Path] = []

    def noted(folder: Path, source: str, width: int | None = None) -> PretrainedEncoder:
        read.append(folder)
        return read_encoder(folder, source, width)

    monkeypatch.setattr(kept, "read_encoder", noted)
    return read


@pytest.fixture
def generations(parts: ModelParts, tmp_path: Path) -> list[Path]:
    """Three checkpoints of one encoder, each with files of its own; none of it is loaded."""
    source = vl_checkpoints.jina_v4(tmp_path / "source")
    folders = [tmp_path / f"g{number}" for number in (1, 2, 3)]
    for folder in folders:
        _save(parts, open_encoder(str(source)), folder)
    shutil.rmtree(source)
    gc.collect()
    return folders


def _save(parts: ModelParts, encoder: PretrainedEncoder, folder: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((60, encoder.width)).astype(np.float32)
    codebook = fit_codebook(vectors, CodebookConfig(parts.sigma.profile.shape))
    save_checkpoint(Checkpoint(parts.sigma, codebook, encoder), folder)


def test_three_generations_load_their_encoder_once(
    generations: list[Path], loads: list[Path]
) -> None:
    encoders = [load_checkpoint(folder).encoder for folder in generations]
    assert encoders[0] is encoders[1] is encoders[2]
    assert len(loads) == 1


def test_an_encoder_that_several_threads_ask_for_is_loaded_once(
    generations: list[Path], loads: list[Path]
) -> None:
    together = threading.Barrier(len(generations))
    found: list[object] = []

    def load(folder: Path) -> None:
        together.wait()
        found.append(kept.read_kept(folder / "encoder", "source", 48))

    threads = [threading.Thread(target=load, args=(folder,)) for folder in generations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(encoder) for encoder in found}) == 1
    assert len(loads) == 1


def test_the_last_generation_that_goes_takes_the_encoder_along(
    generations: list[Path], loads: list[Path]
) -> None:
    first, second = (load_checkpoint(folder) for folder in generations[:2])
    encoder = weakref.ref(first.encoder)
    del first
    gc.collect()
    assert encoder() is not None
    del second
    gc.collect()
    assert encoder() is None
    assert load_checkpoint(generations[2]).encoder.width == 48
    assert len(loads) == 2


def test_another_encoder_and_another_width_are_not_shared(
    parts: ModelParts, generations: list[Path], tmp_path: Path
) -> None:
    whole = load_checkpoint(generations[0]).encoder
    assert isinstance(whole, PretrainedEncoder)
    cut_source = vl_checkpoints.jina_v4(tmp_path / "again")
    _save(parts, open_encoder(str(cut_source), 16), tmp_path / "cut")
    cut = load_checkpoint(tmp_path / "cut").encoder
    assert (cut.width, whole.width) == (16, 48)
    trained_on = vl_checkpoints.qwen(tmp_path / "trained on", seed=8, hidden_size=48)
    _save(parts, open_encoder(str(trained_on)), tmp_path / "other")
    other = load_checkpoint(tmp_path / "other").encoder
    assert other.width == whole.width
    assert other is not whole


def test_a_model_alone_loads_no_encoder(generations: list[Path], loads: list[Path]) -> None:
    # As `sigma explain` does, and every rank of a training but the first.
    shutil.rmtree(generations[0] / "encoder")
    assert load_sigma(generations[0]).levels
    assert not loads
