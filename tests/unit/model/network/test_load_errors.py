"""Weights of others that cannot be used: one sentence, and the exit code of a refused start."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from model.network.encoders.reader import open_encoder
from model.network.parts import open_teacher, pretrained_model
from model.network.profiles import profile
from schemas.errors import RefuseToStartError
from tests import vl_checkpoints

# What is opened, and with what.
OPEN: dict[str, Callable[[Path], object]] = {
    "model": lambda folder: pretrained_model(replace(profile("qwen-3b"), model=str(folder))),
    "encoder": lambda folder: open_encoder(str(folder)),
    "teacher": lambda folder: open_teacher(replace(profile("qwen-3b"), teacher=str(folder)))[0](),
}

MAKE = {
    "model": vl_checkpoints.qwen,
    "encoder": vl_checkpoints.jina_v4,
    "teacher": vl_checkpoints.reranker,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {role: make(root / role) for role, make in MAKE.items()}


@pytest.fixture(params=list(OPEN))
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(whole: dict[str, Path], role: str, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    target = tmp_path / role
    shutil.copytree(whole[role], target)
    return target


def said(role: str, folder: Path) -> str:
    """The sentence with which a folder is refused."""
    with pytest.raises(RefuseToStartError) as caught:
        OPEN[role](folder)
    sentence = str(caught.value)
    assert caught.value.exit_code == 2
    assert str(folder) in sentence
    assert "\n" not in sentence
    assert len(sentence) < 500
    return sentence


def test_a_whole_folder_is_read(role: str, folder: Path) -> None:
    assert OPEN[role](folder) is not None


def test_a_folder_without_a_configuration_is_refused(role: str, folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "must hold a model of type" in said(role, folder)


def test_a_folder_without_weights_is_refused(role: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "must hold" in said(role, folder)


@pytest.mark.parametrize("size", [0, 5, 5000])
def test_weights_that_were_cut_short_are_refused(role: str, folder: Path, size: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert "weights that are damaged or cut short" in said(role, folder)


def test_weights_that_are_missing_are_refused_and_not_drawn(role: str, folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    del tensors[name]
    save_file(tensors, weights, metadata={"format": "pt"})
    assert f"must hold all weights of a Qwen2{'' if role == 'teacher' else '_5_'}" in said(
        role, folder
    )


def test_weights_of_another_shape_are_refused(role: str, folder: Path) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("q_proj.weight"))
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    sentence = said(role, folder)
    assert "weights of the shapes that its config.json says, got others for model." in sentence
    assert "layers.0.self_attn.q_proj.weight" in sentence


def test_a_folder_without_a_tokenizer_is_refused(role: str, folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "must hold a tokenizer, as tokenizer.json or vocab.json, got none" in said(role, folder)


def test_a_tokenizer_of_another_family_is_refused(role: str, folder: Path) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        if token["content"] == "<|image_pad|>":
            token["content"] = "<image>"
    document["model"]["vocab"]["<image>"] = document["model"]["vocab"].pop("<|image_pad|>")
    (folder / "tokenizer.json").write_text(json.dumps(document))
    assert "lacks <|image_pad|>" in said(role, folder)


def test_a_folder_without_a_picture_processor_is_refused(role: str, folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    assert "must hold preprocessor_config.json, which says how" in said(role, folder)


def test_a_model_that_reads_texts_only_is_refused(role: str, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    config = Qwen2Config(
        vocab_size=100, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    assert "qwen2" in said(role, folder)


def test_a_model_of_the_other_kind_is_refused(whole: dict[str, Path]) -> None:
    assert "of type qwen2_5_vl, got one of type qwen2_vl" in said("model", whole["teacher"])
    assert "got qwen2_vl" in said("encoder", whole["teacher"])
    assert "of type qwen2_vl, got one of type qwen2_5_vl" in said("teacher", whole["model"])
