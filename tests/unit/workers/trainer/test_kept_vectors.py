"""A training that was killed does not look at its pictures again."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.network.resize import Pixels
from model.progress import quiet
from schemas.records import FloatArray
from stream.images.store import LocalImageStore
from workers.runtime.pictures import StoredPictures
from workers.trainer.kept_vectors import embed_kept, forget_vectors

PICTURES = 600


class ShadeEncoder:
    """Sees how bright a picture is; fails, as if killed, at a picture of choice."""

    width = 2
    scale = 1.0

    def __init__(self, turn: float = 0.0, fails_at: int = -1) -> None:
        self.turn = turn
        self.fails_at = fails_at
        self.seen = 0

    def embed_images(self, images: Pixels) -> FloatArray:
        self.seen += len(images)
        if 0 <= self.fails_at < self.seen:
            raise KeyboardInterrupt
        shades = np.array([image.mean() / 255 for image in images]) + self.turn
        return np.stack([np.cos(shades), np.sin(shades)], axis=1).astype(np.float32)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        raise AssertionError("no text is embedded")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredPictures, list[str]]:
    store = LocalImageStore(tmp_path_factory.mktemp("store"))
    uris = []
    for number in range(PICTURES):
        data = io.BytesIO()
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(data, "PNG")
        uris.append(store.put(data.getvalue()))
    return StoredPictures(store, uris), uris


def test_what_a_killed_training_saw_is_not_looked_at_again(
    tmp_path: Path, stored: tuple[StoredPictures, list[str]]
) -> None:
    pictures, uris = stored
    with pytest.raises(KeyboardInterrupt):
        embed_kept(ShadeEncoder(fails_at=PICTURES - 50), pictures, uris, tmp_path, quiet)
    again = ShadeEncoder()
    vectors = embed_kept(again, pictures, uris, tmp_path, quiet)
    np.testing.assert_array_equal(vectors, ShadeEncoder().embed_images(pictures[:]))
    # One picture to tell encoders apart, and what came after the last whole part.
    assert again.seen == 1 + PICTURES - 512


def test_vectors_of_another_encoder_or_damaged_ones_are_not_taken(
    tmp_path: Path, stored: tuple[StoredPictures, list[str]]
) -> None:
    pictures, uris = stored
    embed_kept(ShadeEncoder(), pictures, uris, tmp_path, quiet)
    other = ShadeEncoder(turn=1.0)
    vectors = embed_kept(other, pictures, uris, tmp_path, quiet)
    np.testing.assert_array_equal(vectors, ShadeEncoder(turn=1.0).embed_images(pictures[:]))
    for file in (tmp_path / "vectors").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
    again = ShadeEncoder()
    np.testing.assert_array_equal(
        embed_kept(again, pictures, uris, tmp_path, quiet),
        ShadeEncoder().embed_images(pictures[:]),
    )
    assert again.seen == 1 + PICTURES
    forget_vectors(tmp_path)
    assert not list(tmp_path.iterdir())
