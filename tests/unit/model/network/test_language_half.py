"""A model that only answers is the same model, read without the library of its training."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decoding.decoder import Decoder
from model.decoding.explain import explain
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.language_half import AnsweringBackbone
from model.network.parts import ModelParts, parts_from_base
from schemas.errors import RefuseToStartError
from tests.unit.model.conftest import TEXTS, pictures, small_base, small_profile
from tests.unit.model.network.test_checkpoint import codebook_of

STRANGE = (
    *TEXTS,
    "",
    " two  spaces",
    "<|identifier|> <id1_0> forged",
    "naïve 漢字 🙂\nline",
    "a.B,c",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    path = tmp_path_factory.mktemp("checkpoint")
    parts: ModelParts = parts_from_base(small_base(), small_profile())
    save_checkpoint(Checkpoint(parts.sigma, codebook_of(parts, seed=0), parts.encoder), path)
    return path


@pytest.fixture(scope="module")
def whole(folder: Path) -> Checkpoint:
    """The checkpoint with the whole class of the library."""
    return load_checkpoint(folder, answering=True)


@pytest.fixture(scope="module")
def half(folder: Path) -> Checkpoint:
    """The same for queries."""
    return load_checkpoint(folder, answering=True, for_queries=True)


def test_it_has_the_same_weights_and_no_others(whole: Checkpoint, half: Checkpoint) -> None:
    expected = whole.sigma.state_dict()
    found = half.sigma.state_dict()
    assert isinstance(half.sigma.backbone, AnsweringBackbone)
    assert {name for name in expected if ".visual." not in name} == found.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    table = half.sigma.backbone.get_input_embeddings().weight
    assert half.sigma.backbone.lm_head.weight.data_ptr() == table.data_ptr()


def test_it_reads_texts_as_the_whole_class_does(whole: Checkpoint, half: Checkpoint) -> None:
    rows = [whole.sigma.prompts.query_prompt(text) for text in STRANGE]
    assert [half.sigma.prompts.query_prompt(text) for text in STRANGE] == rows
    torch.testing.assert_close(half.sigma.query_states(STRANGE), whole.sigma.query_states(STRANGE))
    np.testing.assert_allclose(
        half.encoder.embed_texts(STRANGE), whole.encoder.embed_texts(STRANGE), atol=1e-6
    )
    assert explain(Decoder(half.sigma), (1, 2, 0, 1)) == explain(Decoder(whole.sigma), (1, 2, 0, 1))


def test_it_reads_pictures_once_they_come(whole: Checkpoint, half: Checkpoint) -> None:
    patches = whole.sigma.preprocessor(pictures(2))
    answering, other = Decoder(half.sigma), Decoder(whole.sigma)
    read, expected = answering.read_images(patches), other.read_images(patches)
    torch.testing.assert_close(read.rows.embeddings, expected.rows.embeddings)
    assert torch.equal(read.rows.positions, expected.rows.positions)
    torch.testing.assert_close(answering.read(read).state, other.read(expected).state)
    assert not any(".visual." in name for name in half.sigma.state_dict())


def test_weights_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "digests.json").unlink()
    config = tmp_path / "backbone" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"intermediate_size": 64', '"intermediate_size": 48'))
    with pytest.raises(RefuseToStartError, match=r"does not fit its config\.json.*train again"):
        load_checkpoint(tmp_path, answering=True, for_queries=True)


def test_a_query_is_answered_without_the_libraries_of_training(folder: Path) -> None:
    """They take three times as long to import as all that a query worker needs."""
    program = f"""
import sys
from pathlib import Path
import workers.query.http, workers.query.residents, workers.query.model_engine
import workers.generations.model_assigner
from model.decoding.decoder import Decoder
from model.network.checkpoint import load_checkpoint
loaded = load_checkpoint(Path({str(folder)!r}), answering=True, for_queries=True)
decoder = Decoder(loaded.sigma)
decoder.read(decoder.read_texts(["a red circle"]))
loaded.encoder.embed_texts(["a red circle"])
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"transformers", "torchvision", "sklearn", "scipy", "pandas", "huggingface_hub"}
    assert (heavy | {"torch._dynamo", "matplotlib"}) & set(done.stdout.split()) == set()
