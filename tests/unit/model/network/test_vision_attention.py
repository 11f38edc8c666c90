"""The vision tower with its chunks run together, beside the family's own."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from model.network.inputs import ImagePatches
from model.network.vision_attention import BatchedVisionAttention, batch_chunks
from tests import vl_checkpoints

# Windows of 4 × 4 patches of 14 px, whole and cut off at both edges; one picture, and several.
SIZES = [[(56, 56)], [(112, 56), (56, 56)], [(84, 140), (56, 56), (168, 28)]]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One layer that attends within windows, and one within pictures."""
    folder = vl_checkpoints.qwen(tmp_path_factory.mktemp("vision") / "model")
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(str(folder)).eval()


def patches_of(sizes: list[tuple[int, int]]) -> ImagePatches:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    # `min_pixels` would change the bounds of every processor that is made later.
    bounds = {"shortest_edge": 1, "longest_edge": 10**6}
    processed = Qwen2VLImageProcessor(size=bounds)(
        images=pictures, return_tensors="pt", input_data_format="channels_last"
    )
    return ImagePatches(processed["pixel_values"], processed["image_grid_thw"])


def with_gradient(tower: Any, patches: ImagePatches) -> tuple[torch.Tensor, torch.Tensor]:
    """Visual tokens, and the gradient of the first layer's weights."""
    tower.zero_grad()
    states = tower(patches.patches, grid_thw=patches.grid).pooler_output
    states.square().sum().backward()
    return states.detach(), tower.patch_embed.proj.weight.grad.clone()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_chunks_run_together_give_what_they_give_one_by_one(
    backbone: Any, sizes: list[tuple[int, int]], checkpointed: bool
) -> None:
    tower = backbone.model.visual
    names = list(tower.state_dict())
    patches = patches_of(sizes)
    for block in tower.blocks:
        block.attn.__class__ = Qwen2_5_VLVisionAttention
    expected = with_gradient(tower, patches)
    batch_chunks(tower)
    assert all(type(block.attn) is BatchedVisionAttention for block in tower.blocks)
    assert list(tower.state_dict()) == names
    if checkpointed:
        backbone.train().gradient_checkpointing_enable({"use_reentrant": False})
    found = with_gradient(tower, patches)
    backbone.gradient_checkpointing_disable()
    backbone.eval()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_as_many_products_as_lengths(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = backbone.model.visual
    batch_chunks(tower)
    calls: list[int] = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
        calls.append(len(query))
        return attention(query, *others, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    patches = patches_of([(112, 112)] * 3)
    tower(patches.patches, grid_thw=patches.grid)
    # Twelve windows of 16 patches in one layer, three pictures of 64 in the other.
    assert calls == [12, 3]
