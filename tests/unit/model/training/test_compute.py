"""How a stage is computed: number formats, parts of a batch, what is frozen, and adapters."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.network.compute import Compute
from model.network.parts import ModelParts, parts_from_base
from model.network.profiles import Profile, StageName
from model.network.sigma import SigmaModel
from model.training.stages import run_stage
from model.training.trainee import own_rows
from schemas.errors import RefuseToStartError, UsageError
from tests.unit.model.conftest import small_base, small_profile
from tests.unit.model.training.test_stages import Stopped, stopping, training_set

BF16 = Compute(dtype="bfloat16")


def profile_with(compute: Compute) -> Profile:
    return replace(small_profile(), compute=compute)


def trained(compute: Compute, name: StageName, folder: Path, **changes: float) -> SigmaModel:
    """The small model after one stage that was computed so."""
    parts = parts_from_base(small_base(), profile_with(compute))
    stage = replace(parts.sigma.profile.stage(name), **changes)
    run_stage(parts.sigma, training_set(parts), stage, folder, seed=3)
    return parts.sigma


def begun() -> dict[str, Tensor]:
    return parts_from_base(small_base(), small_profile()).sigma.state_dict()


def distance(one: SigmaModel, other: SigmaModel) -> float:
    """Squared distance of the weights, as a share of what training changed."""
    first, second, start = one.state_dict(), other.state_dict(), begun()
    apart = sum(float(((first[name] - second[name]) ** 2).sum()) for name in start)
    moved = sum(float(((first[name] - start[name]) ** 2).sum()) for name in start)
    return apart / moved


@pytest.mark.parametrize("name", ["memorize", "comprehend", "align"])
def test_bfloat16_learns_in_every_stage_and_its_weights_stay_float32(
    name: StageName, tmp_path: Path
) -> None:
    exact = trained(Compute(), name, tmp_path)
    rounded = trained(BF16, name, tmp_path)
    assert {value.dtype for value in rounded.state_dict().values()} == {torch.float32}
    # Products are rounded to eight bits, which a few steps turn into this much.
    assert 0 < distance(exact, rounded) < 0.2


def test_a_low_learning_rate_changes_nearly_every_weight_under_bfloat16(tmp_path: Path) -> None:
    # Of weights that were bfloat16 themselves most would round back to what they were.
    sigma = trained(BF16, "memorize", tmp_path, learning_rate=1e-5)
    before = begun()
    changed = total = 0
    for name, value in sigma.state_dict().items():
        if ".layers." in name and name.endswith("_proj.weight"):
            changed += int((value != before[name].to(value.dtype)).sum())
            total += value.numel()
    assert changed > 0.99 * total


def test_identifier_logits_are_float32_where_the_backbone_is_not() -> None:
    from model.decoding.decoder import Decoder

    sigma = parts_from_base(small_base(), profile_with(BF16)).sigma
    sigma.backbone.to(torch.bfloat16)
    decoder = Decoder(sigma)
    states = decoder.read(decoder.read_texts(["a small red circle"])).state
    assert states.dtype == torch.bfloat16
    logits = decoder.logits(0, states)
    rows = sigma.backbone.lm_head.weight[sigma.levels[0]]
    torch.testing.assert_close(logits, (states.double() @ rows.double().T).float())
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("name", ["memorize", "comprehend", "align"])
def test_parts_of_a_batch_learn_what_the_whole_batch_does(name: StageName, tmp_path: Path) -> None:
    whole = trained(Compute(), name, tmp_path)
    parts = trained(Compute(micro_batch=3), name, tmp_path)
    assert distance(whole, parts) < 1e-4


def test_checkpointed_layers_learn_the_same(tmp_path: Path) -> None:
    kept = trained(Compute(), "memorize", tmp_path)
    again = trained(Compute(checkpointing=True), "memorize", tmp_path)
    assert distance(kept, again) < 1e-6
    assert not again.backbone.is_gradient_checkpointing


def test_processes_that_prepare_pictures_change_nothing(tmp_path: Path) -> None:
    alone = trained(Compute(), "comprehend", tmp_path).state_dict()
    helped = trained(Compute(loader_workers=2), "comprehend", tmp_path).state_dict()
    for name, value in alone.items():
        torch.testing.assert_close(helped[name], value, rtol=0, atol=0, msg=name)


def test_a_frozen_vision_tower_stays_and_the_rest_learns(tmp_path: Path) -> None:
    sigma = trained(Compute(frozen_vision=True), "memorize", tmp_path)
    before = begun()
    for name, value in sigma.state_dict().items():
        if ".visual." in name:
            assert torch.equal(value, before[name]), name
        elif name.endswith("q_proj.weight"):
            assert not torch.equal(value, before[name]), name
    assert all(weight.requires_grad for weight in sigma.parameters())


def test_words_of_an_encoder_stay_and_identifiers_and_layers_learn(tmp_path: Path) -> None:
    parts = parts_from_base(small_base(), replace(small_profile(), encoder_words=True))
    stage = parts.sigma.profile.stage("comprehend")
    run_stage(parts.sigma, training_set(parts), stage, tmp_path, seed=3)
    before, after = begun(), parts.sigma.state_dict()
    own = own_rows(parts.sigma)
    table = "backbone.model.language_model.embed_tokens.weight"
    words = torch.ones(len(after[table]), dtype=torch.bool)
    words[own] = False
    assert torch.equal(after[table][words], before[table][words])
    assert not torch.equal(after[table][own], before[table][own])
    layer = "backbone.model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(after[layer], before[layer])


def test_adapters_are_merged_into_plain_weights_and_words_stay_as_they_were(
    tmp_path: Path,
) -> None:
    sigma = trained(Compute(lora_rank=2), "align", tmp_path)
    before, after = begun(), sigma.state_dict()
    assert after.keys() == before.keys()
    own = own_rows(sigma)
    table = "backbone.model.language_model.embed_tokens.weight"
    words = torch.ones(len(after[table]), dtype=torch.bool)
    words[own] = False
    assert torch.equal(after[table][words], before[table][words])
    assert not torch.equal(after[table][own], before[table][own])
    first = "backbone.model.language_model.layers.0."
    changed = after[first + "self_attn.q_proj.weight"] - before[first + "self_attn.q_proj.weight"]
    assert torch.linalg.matrix_rank(changed.double(), rtol=1e-3) == 2
    assert torch.equal(
        after[first + "input_layernorm.weight"], before[first + "input_layernorm.weight"]
    )
    assert not torch.equal(after["head.mlp.0.weight"], before["head.mlp.0.weight"])


def test_a_stage_with_adapters_that_was_killed_resumes_to_the_same_weights(tmp_path: Path) -> None:
    compute = Compute(dtype="bfloat16", lora_rank=2, micro_batch=4, checkpointing=True)
    straight = trained(compute, "align", tmp_path / "a").state_dict()
    killed = parts_from_base(small_base(), profile_with(compute))
    stage = killed.sigma.profile.stage("align")
    folder = tmp_path / "b"
    with pytest.raises(Stopped):
        run_stage(killed.sigma, training_set(killed), stage, folder, seed=3, progress=stopping)
    resumed = parts_from_base(small_base(), profile_with(compute))
    run_stage(resumed.sigma, training_set(resumed), stage, folder, seed=3, resume=True)
    for name, value in straight.items():
        torch.testing.assert_close(resumed.sigma.state_dict()[name], value, msg=name)


def test_an_attention_that_is_not_installed_is_refused(parts: ModelParts, tmp_path: Path) -> None:
    parts.sigma.profile = profile_with(Compute(attention="flash_attention_2"))
    stage = parts.sigma.profile.stage("memorize")
    with pytest.raises(RefuseToStartError, match=r"needs the package flash-attn .* sdpa"):
        run_stage(parts.sigma, training_set(parts), stage, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dtype": "float16"}, "compute.dtype must be one of auto, float32, bfloat16, got float16"),
        ({"attention": "xformers"}, "compute.attention must be one of"),
        ({"micro_batch": -1}, "compute.micro_batch must be 0 or more, got -1"),
        ({"lora_alpha": 0}, "compute.lora_alpha must be above 0, got 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Compute(**wrong)  # type: ignore[arg-type]
