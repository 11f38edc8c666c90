"""The codebook of a training: fitted to what captions tell where the profile wants that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.identifiers.caption_directions import LEAST_IMAGES_A_DIMENSION
from model.identifiers.codebook import CodebookConfig
from model.network.profiles import Profile, profile
from model.progress import quiet
from ops.scenes.corpus import CorpusConfig, samples
from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray
from tests.unit.model.conftest import small_base, small_profile
from workers.trainer.request import TrainRequest
from workers.trainer.run_codebook import fit_run_codebook
from workers.trainer.training_run import begin_run

ENCODER = small_base().encoder

SHAPE = IdentifierShape((3, 2, 2, 9), 16)

TELLING = replace(small_profile(), caption_directions=True)
MUTE = replace(small_profile(), caption_directions=False)


def told(count: int) -> tuple[list[tuple[str, ...]], FloatArray]:
    """Captions, and vectors of images that are what the encoder says of the first one."""
    config = CorpusConfig(count, captions=2, test_captions=0)
    captions = [sample.captions for sample in samples(config)]
    return captions, ENCODER.embed_texts([own[0] for own in captions])


def has_directions(profile: Profile, count: int, uncaptioned: int = 0) -> bool:
    captions, embeddings = told(count)
    captions[:uncaptioned] = [()] * uncaptioned
    book = fit_run_codebook(profile, 0, captions, ENCODER, embeddings, quiet)
    assert book.encode(embeddings).shape == (count, 4)
    return book.directions is not None


def test_a_codebook_follows_captions_where_the_profile_wants_that() -> None:
    enough = LEAST_IMAGES_A_DIMENSION * ENCODER.width
    assert has_directions(TELLING, enough)
    assert not has_directions(MUTE, enough)


def test_too_few_captioned_images_leave_embeddings_as_they_are() -> None:
    enough = LEAST_IMAGES_A_DIMENSION * ENCODER.width
    assert not has_directions(TELLING, enough, uncaptioned=1)
    assert has_directions(TELLING, enough + 1, uncaptioned=1)


def test_mean_vectors_of_captions_belong_to_their_images() -> None:
    captions, embeddings = told(LEAST_IMAGES_A_DIMENSION * ENCODER.width)
    book = fit_run_codebook(TELLING, 0, captions, ENCODER, embeddings, quiet)
    # Those of other images tell nothing.
    moved = [*captions[7:], *captions[:7]]
    other = fit_run_codebook(TELLING, 0, moved, ENCODER, embeddings, quiet)
    assert book.directions is not None
    assert other.directions is None or not np.allclose(other.directions, book.directions)


def test_components_and_subspaces_are_those_of_the_profile() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    chosen = replace(
        profile("tiny"),
        shape=SHAPE,
        caption_directions=False,
        centred_components=False,
        subspaces=2,
    )
    encoder: Any = None  # of captions alone, which are not asked for
    book = fit_run_codebook(chosen, 3, [()] * len(rows), encoder, rows, quiet)
    assert book.config == CodebookConfig(SHAPE, subspaces=2, seed=3, centred=False)
    assert book.codewords.shape == (2, 3, 4)


def test_codes_that_do_not_fit_the_subspaces_are_refused_before_an_image_is_read(
    tmp_path: Path,
) -> None:
    odd = replace(profile("tiny"), subspaces=2)
    assert odd.shape.codes[3] == 4
    conn: Any = None  # nothing is asked of a database
    wrong = replace(odd, shape=replace(odd.shape, codes=(32, 8, 8, 5)))
    with pytest.raises(UsageError, match="2-th power"):
        begin_run(conn, tmp_path, None, TrainRequest(wrong))
