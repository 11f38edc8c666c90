"""Pretrained encoders give the vectors of the libraries that own the models, and stay themselves in
a checkpoint. On small random checkpoints of the real classes."""

import gc
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    CLIPModel,
    JinaEmbeddingsV3Model,
    Siglip2Model,
    SiglipModel,
)

from model.identifiers.codebook import CodebookConfig, fit_codebook
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.encoders.jina_clip import JinaClipTowers
from model.network.encoders.pretrained import PretrainedEncoder
from model.network.encoders.reader import open_encoder
from model.network.encoders.teacher import EncoderTeacher
from model.network.parts import ModelParts
from schemas.errors import RefuseToStartError, RetryLaterError, UsageError
from schemas.records import ByteArray, FloatArray
from tests.encoder_checkpoints import CHECKPOINTS, WORDS

LONG = " ".join(WORDS * 9)
"""Longer than the text limit of any of them."""

CAPITALS = "A PHOTO of Two Small BLUE circles"

TEXTS = (*WORDS, CAPITALS, "", LONG)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    root = tmp_path_factory.mktemp("encoders")
    return {name: write(root / name) for name, write in CHECKPOINTS.items()}


def pictures() -> list[ByteArray]:
    """Wide, high and square ones, and one of three rows, which could be taken for channels."""
    rng = np.random.default_rng(3)
    sizes = ((40, 60), (90, 45), (32, 32), (3, 50))
    made = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    # As those of the store are.
    for picture in made:
        picture.setflags(write=False)
    return made


def images() -> list[Image.Image]:
    """The same but the last, which the libraries misread, as their own processors take them."""
    return [Image.fromarray(picture) for picture in pictures()[:-1]]


def unit(features: Any) -> FloatArray:
    """Rows of unit length."""
    rows: FloatArray = F.normalize(features.float(), dim=-1).detach().numpy()
    return rows


@torch.inference_mode()
def by_clip(folder: Path) -> tuple[FloatArray, FloatArray]:
    model = CLIPModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    inputs = processor(
        text=list(TEXTS), images=images(), return_tensors="pt", padding=True, truncation=True,
        max_length=20,
    )  # fmt: skip
    output = model(**inputs)
    return output.image_embeds.numpy(), output.text_embeds.numpy()


@torch.inference_mode()
def by_siglip(folder: Path) -> tuple[FloatArray, FloatArray]:
    model = SiglipModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    # As the model cards of SigLIP 2 say, texts are in small letters; SigLIP does so by itself.
    lower = [text.lower() for text in TEXTS]
    inputs = processor(
        text=lower, images=images(), return_tensors="pt", padding="max_length", truncation=True
    )
    output = model(**inputs)
    return output.image_embeds.numpy(), output.text_embeds.numpy()


@torch.inference_mode()
def by_siglip2(folder: Path) -> tuple[FloatArray, FloatArray]:
    model = Siglip2Model.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    # The processor's own limit is 64, which this small model does not have.
    inputs = processor(
        text=list(TEXTS), images=images(), return_tensors="pt", max_length=18, max_num_patches=16,
        patch_size=8,
    )  # fmt: skip
    output = model(**inputs)
    return output.image_embeds.numpy(), output.text_embeds.numpy()


@torch.inference_mode()
def by_open_clip(folder: Path) -> tuple[FloatArray, FloatArray]:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(list(TEXTS))
    pixels = torch.stack([transform(image) for image in images()])
    return unit(model.encode_image(pixels)), unit(model.encode_text(tokens))


REFERENCES: dict[str, Callable[[Path], tuple[FloatArray, FloatArray]]] = {
    "clip": by_clip,
    "open_clip": by_open_clip,
    "siglip": by_siglip,
    "siglip2": by_siglip,
    "siglip2_flexible": by_siglip2,
}


@pytest.mark.parametrize("family", REFERENCES)
def test_an_encoder_gives_what_the_models_own_library_and_processor_give(
    folders: dict[str, Path], family: str
) -> None:
    expected_images, expected_texts = REFERENCES[family](folders[family])
    encoder = open_encoder(str(folders[family]))
    found = encoder.embed_images(pictures())
    np.testing.assert_allclose(found[:-1], expected_images, atol=2e-5)
    np.testing.assert_allclose(encoder.embed_texts(TEXTS), expected_texts, atol=2e-5)


def test_the_texts_of_jina_clip_are_those_of_transformers_own_conversion(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = open_encoder(str(folders["jina_clip"]))
    towers = encoder.towers
    assert isinstance(towers, JinaClipTowers)
    state = {}
    prefix = "text_model.transformer.roberta."
    tensors = load_file(folders["jina_clip"] / "model.safetensors")
    for name, value in tensors.items():
        if not name.startswith(prefix) or "lora_" in name:
            continue
        marked = ".parametrizations.weight.original"
        plain = name.replace(marked, ".weight").removeprefix(prefix)
        state[plain] = value
        if name.endswith(marked):
            adapter = name.replace("original", "0.lora_")
            first, second = tensors[f"{adapter}A"][0], tensors[f"{adapter}B"][0]
            product = first @ second if first.shape[0] == value.shape[0] else second @ first
            state[plain] = value + product * (4 / 2)
    save_file(state, tmp_path / "model.safetensors")
    towers.text.config.save_pretrained(tmp_path)
    model = JinaEmbeddingsV3Model.from_pretrained(tmp_path, add_pooling_layer=False).eval()
    tokens = towers.tokenizer(list(WORDS), padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
    kept = tokens["attention_mask"].unsqueeze(-1)
    mean = (states * kept).sum(1) / kept.sum(1)
    np.testing.assert_allclose(encoder.embed_texts(WORDS), unit(mean), atol=2e-5)


def test_the_pictures_of_jina_clip_follow_their_own_preprocessing(
    folders: dict[str, Path],
) -> None:
    encoder = open_encoder(str(folders["jina_clip"]))
    whole = Image.fromarray(pictures()[0])
    # The shorter side becomes 28 px, then the middle is kept.
    width = round(28 * whole.width / whole.height)
    left = (width - 28) // 2
    resized = whole.resize((width, 28), Image.Resampling.BICUBIC)
    square = np.asarray(resized.crop((left, 0, left + 28, 28)), dtype=np.uint8)
    (expected,) = encoder.embed_images([square])
    np.testing.assert_allclose(encoder.embed_images(pictures())[0], expected, atol=2e-5)


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_vectors_have_unit_length_and_do_not_depend_on_what_is_embedded_beside(
    folders: dict[str, Path], family: str
) -> None:
    encoder = open_encoder(str(folders[family]))
    encoder.batch = 3
    for together, one in (
        (encoder.embed_images(pictures()), [encoder.embed_images([p]) for p in pictures()]),
        (encoder.embed_texts(TEXTS), [encoder.embed_texts([text]) for text in TEXTS]),
    ):
        assert together.dtype == np.float32
        assert together.shape[1] == encoder.width
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
        np.testing.assert_allclose(together, np.concatenate(one), atol=2e-5)
    assert encoder.embed_images([]).shape == encoder.embed_texts([]).shape == (0, encoder.width)


@pytest.mark.parametrize(
    ("family", "control"),
    [
        ("clip", "<|endoftext|>"),
        ("open_clip", "<end_of_text>"),
        ("siglip2", "<eos>"),
        ("jina_clip", "</s>"),
    ],
)
def test_a_query_that_spells_a_control_token_is_read_to_its_end(
    folders: dict[str, Path], family: str, control: str
) -> None:
    encoder = open_encoder(str(folders[family]))
    cut, whole = encoder.embed_texts([f"a {control}", f"a {control} red"])
    assert np.abs(cut - whole).max() > 1e-4


@pytest.mark.parametrize("family", ["siglip", "siglip2", "siglip2_flexible"])
def test_siglip_reads_capitals_as_small_letters(folders: dict[str, Path], family: str) -> None:
    encoder = open_encoder(str(folders[family]))
    written, small = encoder.embed_texts([CAPITALS, CAPITALS.lower()])
    np.testing.assert_array_equal(written, small)


def test_scale_bias_and_size_are_those_of_the_checkpoint(folders: dict[str, Path]) -> None:
    clip = open_encoder(str(folders["clip"]))
    assert (round(clip.scale, 3), clip.bias, clip.side_px) == (round(np.exp(3.5), 3), 0.0, 32)
    siglip = open_encoder(str(folders["siglip"]))
    assert (round(siglip.scale, 3), siglip.bias, siglip.side_px) == (54.598, -9.5, 28)


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_missing_weights_are_refused_instead_of_drawn(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for family, name in (
        ("clip", "text_projection.weight"),
        ("jina_clip", "vision_model.norm.bias"),
        ("open_clip", "text_projection"),
    ):
        folder = copied(folders[family], tmp_path / family)
        (weights,) = folder.glob("*.safetensors")
        tensors = load_file(weights)
        del tensors[name]
        save_file(tensors, weights, metadata={"format": "pt"})
        with pytest.raises(RefuseToStartError, match=r"complete folder|do not fit"):
            open_encoder(str(folder))
        weights.unlink()
        with pytest.raises(RefuseToStartError):
            open_encoder(str(folder))


def test_what_is_no_encoder_is_one_sentence(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UsageError,
        match=r"not efficientnet-minilm, must be a folder, or a model of the hub .* got 'clip'",
    ):
        open_encoder("clip")
    with pytest.raises(RefuseToStartError, match=r"must hold a model of type clip, .* got none"):
        open_encoder(str(tmp_path))
    folder = copied(folders["clip"], tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(RefuseToStartError, match="got bert"):
        open_encoder(str(folder))
    folder = copied(folders["jina_clip"], tmp_path / "first")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hf_model_name_or_path"] = "jinaai/jina-bert-flash-implementation"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefuseToStartError, match="jina-bert-flash-implementation"):
        open_encoder(str(folder))
    # No request leaves this machine.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RetryLaterError, match="owner/name@main cannot be loaded from the hub"):
        open_encoder("owner/name@main")


def saved(parts: ModelParts, encoder: PretrainedEncoder, folder: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((60, encoder.width)).astype(np.float32)
    codebook = fit_codebook(vectors, CodebookConfig(parts.sigma.profile.shape))
    save_checkpoint(Checkpoint(parts.sigma, codebook, encoder), folder)


def test_a_checkpoint_keeps_its_encoder_when_the_folder_it_came_from_is_gone(
    parts: ModelParts, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = copied(folders["clip"], tmp_path / "source")
    (source / "README.md").write_text("not needed")
    encoder = open_encoder(str(source))
    expected = encoder.embed_texts(WORDS)
    first, second = tmp_path / "g1", tmp_path / "g2"
    saved(parts, encoder, first)
    shutil.rmtree(source)
    # The second save of a run finds the encoder in its place.
    saved(parts, encoder, first)
    del encoder
    gc.collect()
    loaded = load_checkpoint(first).encoder
    np.testing.assert_array_equal(loaded.embed_texts(WORDS), expected)
    assert isinstance(loaded, PretrainedEncoder)
    assert loaded.source == str(source)
    assert "README.md" not in loaded.files.names
    # A refresh: the next generation keeps it too, and the process has it once.
    saved(parts, loaded, second)
    shutil.rmtree(first)
    assert load_checkpoint(second).encoder is loaded
    weights = second / "encoder" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 1
    weights.write_bytes(bytes(damaged))
    with pytest.raises(RefuseToStartError, match=r"model\.safetensors cannot be read as it was"):
        load_checkpoint(second)
    shutil.rmtree(second / "encoder")
    with pytest.raises(RefuseToStartError, match="holds no encoder"):
        load_checkpoint(second)


def test_soft_labels_are_placed_by_the_corpus(folders: dict[str, Path]) -> None:
    encoder = open_encoder(str(folders["clip"]))
    texts = encoder.embed_texts(WORDS)
    # Images that lie near their own texts.
    noise = np.random.default_rng(1).standard_normal(texts.shape).astype(np.float32)
    near = texts + 0.1 * noise
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    captions = [(word,) for word in WORDS]
    teacher = EncoderTeacher.calibrated(encoder, near, captions, seed=0)
    own = teacher.score_embedded(near, WORDS)
    others = teacher.score_embedded(near, [*WORDS[1:], WORDS[0]])
    assert own.min() > 0.6
    assert others.mean() < 0.3
    assert teacher.score(pictures()[:2], WORDS[:2]).shape == (2,)
    assert 0.0 <= others.min() <= own.max() <= 1.0
