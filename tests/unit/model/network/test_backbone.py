"""The backbone's inputs, against what transformers itself computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2VLImageProcessor

from model.network.inputs import ImagePreprocessor, pad_rows, rope_positions
from model.network.parts import ModelParts
from model.network.profiles import profile
from tests.unit.model.conftest import SMALL, pictures


def test_patches_equal_the_image_processors() -> None:
    images = pictures(3)
    ours = ImagePreprocessor.tiny(SMALL)(images)
    processor = Qwen2VLImageProcessor(
        do_resize=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        patch_size=SMALL.patch_px,
        temporal_patch_size=2,
        merge_size=2,
        do_convert_rgb=False,
    )
    theirs = processor(images=images, return_tensors="pt")
    np.testing.assert_array_equal(ours.grid, theirs["image_grid_thw"])
    np.testing.assert_allclose(ours.patches, theirs["pixel_values"], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 100, 3), (3, 100, 3), (100, 3, 3), (3, 3, 3), (4, 400, 3)])
def test_a_picture_of_few_rows_is_not_taken_for_one_of_few_channels(
    shape: tuple[int, int, int],
) -> None:
    red = np.zeros(shape, dtype=np.uint8)
    red[..., 0] = 255
    processor = Qwen2VLImageProcessor(image_mean=[0.0] * 3, image_std=[1.0] * 3)
    made = ImagePreprocessor(processor, 0, 0)([red])
    # Red, green, blue; each for two frames.
    by_channel = made.patches.reshape(len(made.patches), 3, -1)
    assert float(by_channel[:, 0].min()) > 0.99
    assert float(by_channel[:, 1:].max()) < 0.01
    _, rows, columns = made.grid[0].tolist()
    assert (rows < columns) == (shape[0] < shape[1])


@pytest.mark.parametrize("with_image", [True, False])
def test_positions_equal_the_models_own(parts: ModelParts, with_image: bool) -> None:
    sigma = parts.sigma
    query = sigma.prompts.query_prompt("a star at the top")
    patches = sigma.preprocessor(pictures(2))
    if with_image:
        image = sigma.prompts.image_prompt(patches.token_counts(sigma.merge)[0])
        # An image alone, text alone, and an image with text behind it.
        rows = [image, query, [*image, 5, 6, 7]]
        grid = patches.grid
    else:
        rows = [query]
        grid = None
    tokens, mask = pad_rows(rows, sigma.pad)
    is_image = (tokens == sigma.prompts.image).int()
    theirs, _ = sigma.backbone.model.get_rope_index(
        tokens, mm_token_type_ids=is_image, image_grid_thw=grid, attention_mask=mask.long()
    )
    ours = rope_positions(tokens, mask, grid, sigma.prompts.image, sigma.merge)
    np.testing.assert_array_equal(ours[:, mask], theirs[:, mask])


def test_rows_are_padded_on_the_right_to_the_longest() -> None:
    tokens, mask = pad_rows([[5, 6, 7], [8], []], pad=0)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0], [0, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]


def test_text_logits_equal_a_plain_qwen2_decoder_with_the_same_weights(parts: ModelParts) -> None:
    backbone = parts.sigma.backbone
    text = backbone.config.text_config
    config = Qwen2Config(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        rms_norm_eps=text.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
    )
    plain = Qwen2ForCausalLM(config).eval()
    plain.model.load_state_dict(backbone.model.language_model.state_dict())
    plain.tie_weights()
    tokens = torch.tensor([parts.sigma.prompts.query_prompt("two blue squares")])
    with torch.inference_mode():
        positions = torch.arange(tokens.shape[1]).view(1, 1, -1).expand(3, 1, -1)
        ours = backbone(input_ids=tokens, position_ids=positions).logits
        theirs = plain(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.fixture
def processor(tmp_path: Path) -> Path:
    """A folder with the picture processor of Qwen2.5-VL, and bounds as published."""
    Qwen2VLImageProcessor(min_pixels=3136, max_pixels=12_845_056).save_pretrained(tmp_path)
    return tmp_path


def tokens(preprocessor: ImagePreprocessor, height: int, width: int) -> int:
    picture = np.zeros((height, width, 3), np.uint8)
    # As the store gives pictures.
    picture.flags.writeable = False
    (count,) = preprocessor([picture]).token_counts(merge=2)
    return count


def test_a_picture_has_the_pixels_that_profile_and_processor_allow(processor: Path) -> None:
    published = ImagePreprocessor.pretrained(processor)
    assert (published.side_px, published.fixed_size) == (3584, False)
    assert tokens(published, 1344, 1792) == 48 * 64
    # The bounds of the qwen profiles: 448 x 336 pixels are 192 tokens, whatever is stored.
    most = profile("qwen-3b").max_pixels
    bounded = ImagePreprocessor.pretrained(processor, max_pixels=most)
    assert tokens(bounded, 1344, 1792) == 12 * 16
    assert tokens(bounded, 336, 448) == 12 * 16
    assert tokens(bounded, 56, 56) == 4
    enlarged = ImagePreprocessor.pretrained(processor, 112 * 112, most)
    assert tokens(enlarged, 56, 56) == 16


def test_the_bounds_of_a_processor_are_saved_with_it(processor: Path, tmp_path: Path) -> None:
    ImagePreprocessor.pretrained(processor, 6272, 12_544).save(tmp_path / "own")
    again = ImagePreprocessor.pretrained(tmp_path / "own")
    assert again.side_px == 112
    assert tokens(again, 20, 20) == 9


def test_a_picture_that_is_one_line_is_squeezed_instead_of_refused(processor: Path) -> None:
    bounded = ImagePreprocessor.pretrained(processor, max_pixels=150_528)
    assert tokens(bounded, 1, 4000) > 0
    assert tokens(bounded, 3000, 2) > 0
