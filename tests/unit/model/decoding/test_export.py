"""The exported text decoder gives the model's own logits, and appears whole or not at all."""

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
from model.network.parts import ModelParts
from schemas.errors import RefuseToStartError, WorkFailedError
from tests.unit.model.conftest import TEXTS

TOLERANCE = 1e-5
"""Of a logit: float32 sums in another order."""


def greatest_difference(parts: ModelParts, folder: Path) -> float:
    """Greatest difference between the logits of the model and of the plain Qwen2 in the export.

    The texts end with identifiers.
    """
    sigma = parts.sigma
    plain = Qwen2ForCausalLM.from_pretrained(str(folder)).eval()
    greatest = 0.0
    for number, text in enumerate(TEXTS):
        codes = [number % 4, 1, 2, 0]
        row = [*sigma.prompts.query_prompt(text), *sigma.prompts.identifier(codes)]
        with torch.inference_mode():
            inputs = sigma.embed([row], None)
            hidden = sigma.backbone.model.language_model(
                inputs_embeds=inputs.embeddings,
                attention_mask=inputs.mask.long(),
                position_ids=inputs.positions,
            )
            ours = sigma.backbone.lm_head(hidden.last_hidden_state)
            theirs = plain(input_ids=inputs.tokens).logits
        greatest = max(greatest, float((theirs - ours).abs().max()))
    return greatest


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
    written_at = (first / export.WEIGHTS).stat().st_mtime_ns
    assert ensure_export(parts.sigma, tmp_path, "generation-1") == first
    assert (first / export.WEIGHTS).stat().st_mtime_ns == written_at
    with torch.no_grad():
        parts.sigma.backbone.model.language_model.norm.weight.add_(0.5)
    second = ensure_export(parts.sigma, tmp_path, "generation-1")
    assert second != first
    assert greatest_difference(parts, second) < TOLERANCE


def test_an_interrupted_export_leaves_nothing(
    parts: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "save_file", disk_full)
    with pytest.raises(WorkFailedError, match="no space left"):
        ensure_export(parts.sigma, tmp_path, "generation-1")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(export, "save_file", save_file)
    folder = ensure_export(parts.sigma, tmp_path, "generation-1")
    assert greatest_difference(parts, folder) < TOLERANCE


def test_without_vllm_its_engine_refuses_and_says_how_to_install_it(
    parts: ModelParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Importing vLLM sets these; so they are restored after the test.
    for name, value in VLLM_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RefuseToStartError, match=r"constraints-vllm\.txt"):
        VllmDecoder.start(Decoder(parts.sigma), tmp_path)


def test_stale_exports_are_deleted_unless_they_are_young(parts: ModelParts, tmp_path: Path) -> None:
    kept = ensure_export(parts.sigma, tmp_path, "generation-11")
    stale = ensure_export(parts.sigma, tmp_path, "generation-1")
    half_written = tmp_path / f".{stale.name}.abc"
    half_written.mkdir()
    # No export made these two: their names do not end with a digest.
    (tmp_path / "generation-1").mkdir()
    (tmp_path / "notes").mkdir()
    assert delete_stale_exports(tmp_path, {"generation-11"}) == []
    deleted = delete_stale_exports(tmp_path, {"generation-11"}, older_than_s=-1)
    assert deleted == [half_written.name, stale.name]
    remaining = sorted(folder.name for folder in tmp_path.iterdir())
    assert remaining == ["generation-1", kept.name, "notes"]
    assert delete_stale_exports(tmp_path / "nowhere", set()) == []
