"""The exported text decoder is the model's own, to the last bit that matters, and appears whole or not at all."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2ForCausalLM

from model.decoding import export
from model.decoding.decoder import Decoder
from model.decoding.export import delete_stale_exports, ensure_export, export_text_decoder
from model.decoding.vllm import VLLM_ENVIRONMENT, VllmDecoder
from model.network.checkpoint import ModelParts
from schemas.errors import RefuseToStartError, WorkFailedError
from tests.unit.model.conftest import TEXTS

TOLERANCE = 1e-5


def greatest_difference(parts: ModelParts, folder: Path) -> float:
    """Greatest difference of logits between the model and the plain Qwen2 read from the export, over texts with identifiers."""
    sigma = parts.sigma
    plain = Qwen2ForCausalLM.from_pretrained(str(folder)).eval()
    found = 0.0
    for number, text in enumerate(TEXTS):
        row = [*sigma.prompts.query_prompt(text), *sigma.prompts.identifier([number % 4, 1, 2, 0])]
        with torch.inference_mode():
            tokens, mask, embeds, positions = sigma.embed([row], None, None)
            hidden = sigma.backbone.model.language_model(
                inputs_embeds=embeds, attention_mask=mask.long(), position_ids=positions
            )
            ours = sigma.backbone.lm_head(hidden.last_hidden_state)
            found = max(found, float((plain(input_ids=tokens).logits - ours).abs().max()))
    return found


def test_the_export_gives_the_models_logits(parts: ModelParts, tmp_path: Path) -> None:
    export_text_decoder(parts.sigma, tmp_path)
    assert greatest_difference(parts, tmp_path) < TOLERANCE


def test_an_output_layer_of_its_own_is_exported_too(parts: ModelParts, tmp_path: Path) -> None:
    backbone = parts.sigma.backbone
    backbone.lm_head.weight = nn.Parameter(torch.randn_like(backbone.lm_head.weight))
    export_text_decoder(parts.sigma, tmp_path)
    assert greatest_difference(parts, tmp_path) < TOLERANCE


def test_an_export_is_made_once_and_again_for_other_weights(
    parts: ModelParts, tmp_path: Path
) -> None:
    first = ensure_export(parts.sigma, tmp_path, "generation-1")
    stamp = (first / export.WEIGHTS).stat().st_mtime_ns
    assert ensure_export(parts.sigma, tmp_path, "generation-1") == first
    assert (first / export.WEIGHTS).stat().st_mtime_ns == stamp
    with torch.no_grad():
        parts.sigma.backbone.model.language_model.norm.weight.add_(0.5)
    second = ensure_export(parts.sigma, tmp_path, "generation-1")
    assert second != first
    assert greatest_difference(parts, second) < TOLERANCE


def test_an_interrupted_export_leaves_nothing(
    parts: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "save_file", full)
    with pytest.raises(WorkFailedError, match="no space left"):
        ensure_export(parts.sigma, tmp_path, "generation-1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(export, "save_file", save_file)
    assert (
        greatest_difference(parts, ensure_export(parts.sigma, tmp_path, "generation-1")) < TOLERANCE
    )


def test_without_vllm_its_engine_refuses_with_the_cure(
    parts: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in VLLM_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RefuseToStartError, match=r"constraints-vllm\.txt"):
        VllmDecoder(Decoder(parts.sigma), tmp_path)


def test_exports_of_generations_that_are_gone_are_deleted_unless_somebody_may_be_reading_them(
    parts: ModelParts, tmp_path: Path
) -> None:
    kept, gone = (
        ensure_export(parts.sigma, tmp_path, name) for name in ("generation-11", "generation-1")
    )
    half = tmp_path / f".{gone.name}.abc"
    for folder in (half, tmp_path / "generation-1", tmp_path / "notes"):
        folder.mkdir()
    assert delete_stale_exports(tmp_path, {"generation-11"}) == []
    assert delete_stale_exports(tmp_path, {"generation-11"}, older_than_s=-1) == [
        half.name,
        gone.name,
    ]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == [
        "generation-1",
        kept.name,
        "notes",
    ]
    assert delete_stale_exports(tmp_path / "nowhere", set()) == []
