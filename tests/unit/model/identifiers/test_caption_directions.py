"""Caption directions: a codebook holds what captions tell, however little it varies."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.identifiers.caption_directions import LEAST_IMAGES_A_DIMENSION, caption_directions
from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.identifiers.recluster import keep_codes, recluster
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray

WIDTH = 16
CONFIG = CodebookConfig(IdentifierShape(codes=(4, 2, 2, 2), suffixes=64))


def told_and_untold(count: int, seed: int = 0) -> tuple[FloatArray, FloatArray, IntArray]:
    """Images (N, D) that vary little by a word of four and much by what no caption says.

    Beside them the vectors of captions, which know the word alone, and the words.
    """
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 4, count)
    captions = np.zeros((count, WIDTH), np.float32)
    captions[np.arange(count), words] = 1.0
    images = 0.3 * captions
    images[:, 4:] += rng.normal(0, 1.0, (count, WIDTH - 4)).astype(np.float32)
    images += rng.normal(0, 0.02, images.shape).astype(np.float32)
    return images, captions, words


def purity(codes: IntArray, words: IntArray) -> float:
    """Share of the images that have the word which is most frequent in their id1."""
    right = 0
    for code in np.unique(codes[:, 0]):
        right += np.bincount(words[codes[:, 0] == code]).max()
    return right / len(words)


def test_id1_tells_the_word_that_captions_tell() -> None:
    images, captions, words = told_and_untold(800)
    directions = caption_directions(images, captions, 0)
    assert directions is not None
    without = fit_codebook(images, CONFIG)
    told = fit_codebook(images, CONFIG, directions=directions)
    assert purity(without.encode(images), words) < 0.5
    assert purity(told.encode(images), words) > 0.99


def test_rows_keep_their_mean_length() -> None:
    images, captions, _ = told_and_untold(800)
    directions = caption_directions(images, captions, 0)
    assert directions is not None
    centred = images - images.mean(0)
    assert np.square(centred @ directions).sum() == pytest.approx(np.square(centred).sum(), rel=0.1)


def test_captions_that_tell_nothing_give_no_directions() -> None:
    images, captions, _ = told_and_untold(800)
    shuffled = captions[np.random.default_rng(1).permutation(800)]
    assert caption_directions(images, shuffled, 0) is None


def test_few_images_give_no_directions() -> None:
    images, captions, _ = told_and_untold(LEAST_IMAGES_A_DIMENSION * WIDTH)
    assert caption_directions(images, captions, 0) is not None
    assert caption_directions(images[:-1], captions[:-1], 0) is None


def test_a_codebook_with_directions_is_read_back_and_has_a_version_of_its_own(
    tmp_path: Path,
) -> None:
    images, captions, _ = told_and_untold(400)
    book = fit_codebook(images, CONFIG, directions=caption_directions(images, captions, 0))
    book.save(tmp_path)
    loaded = Codebook.load(tmp_path)
    assert loaded.version == book.version != replace(book, directions=None).version
    np.testing.assert_array_equal(loaded.encode(images), book.encode(images))


def test_codes_of_one_row_are_those_of_the_batch() -> None:
    images, captions, _ = told_and_untold(400)
    book = fit_codebook(images, CONFIG, directions=caption_directions(images, captions, 0))
    each = [book.encode(images[row : row + 1])[0] for row in range(50)]
    np.testing.assert_array_equal(np.stack(each), book.encode(images)[:50])


def test_a_reclustering_keeps_directions_and_codes() -> None:
    images, captions, words = told_and_untold(800)
    book = fit_codebook(images, CONFIG, directions=caption_directions(images, captions, 0))
    later, _, later_words = told_and_untold(800, seed=1)
    new = recluster(book, later)
    assert new.directions is book.directions
    kept = keep_codes(book.encode(later), later, new)
    assert purity(kept, later_words) > 0.99
    assert (kept[:, 0] == book.encode(later)[:, 0]).mean() > 0.99
    assert purity(book.encode(images), words) > 0.99
