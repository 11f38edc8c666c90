"""Rivals' identifiers: what each scheme gives to images that it is fitted on and to later ones."""

import numpy as np
import pytest

from model.identifiers.rivals.decoupled import Decoupled
from model.identifiers.rivals.hierarchy import Hierarchy
from model.identifiers.rivals.keywords import Keywords
from model.identifiers.rivals.residual import Residual, fit_residual
from model.identifiers.rivals.scheme import Scheme, SchemeImages
from model.identifiers.rivals.schemes import SCHEMES
from model.identifiers.rivals.several import Several
from model.identifiers.rivals.visual_tokens import TokenToToken
from schemas.records import FloatArray

IMAGES = 90
WIDTH = 12


def unit(rows: FloatArray) -> FloatArray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def images(seed: int = 0, count: int = IMAGES) -> SchemeImages:
    """Random vectors, with captions that are all different."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.standard_normal((count, WIDTH)))
    captions = [(f"a red thing {number}", f"one blue shape {number}") for number in range(count)]
    texts = [unit(vector + 0.1 * rng.standard_normal((2, WIDTH))) for vector in vectors]
    regions = rng.standard_normal((count, 4, 6)).astype(np.float32)
    return SchemeImages(vectors, regions, captions, texts)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_every_image_and_caption_has_an_identifier_of_the_symbols_that_were_counted(
    scheme: Scheme,
) -> None:
    fitted = scheme.fit(images(), seed=0)
    assert len(fitted.trained) == IMAGES
    for identified in fitted.trained:
        assert len(identified.captions) == 2
        for identifier in identified.different:
            assert len(identifier) > 0
            assert isinstance(identifier, str) == (fitted.symbols == 0)
            if not isinstance(identifier, str):
                assert all(0 <= symbol < fitted.symbols for symbol in identifier)
    assert scheme.fit(images(), seed=0).trained == fitted.trained, "the same seed, the same"


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_no_identifier_is_the_beginning_of_another(scheme: Scheme) -> None:
    fitted = scheme.fit(images(), seed=0)
    if fitted.symbols == 0:
        return  # texts end in a token of their own
    rows = {identifier for each in fitted.trained for identifier in each.different}
    for row in rows:
        assert not any(row[:length] in rows for length in range(1, len(row)))


@pytest.mark.parametrize("scheme", [Residual(), Decoupled(), TokenToToken()])
def test_a_picture_that_comes_again_gets_the_codes_of_training(scheme: Scheme) -> None:
    fitted = scheme.fit(images(), seed=0)
    assert fitted.assign is not None
    again = fitted.assign(images())
    assert [own[0] for own in again] == [identified.picture for identified in fitted.trained]


def test_a_later_picture_goes_into_the_cluster_of_its_like_under_a_number_of_its_own() -> None:
    fitted = Hierarchy().fit(images(), seed=0)
    assert fitted.assign is not None
    taken = {identified.picture for identified in fitted.trained}
    for own, identified in zip(fitted.assign(images()), fitted.trained, strict=True):
        assert own[0][:-1] == identified.picture[:-1]
        assert own[0] not in taken
        taken.add(own[0])


def test_pictures_that_are_all_alike_are_numbered_and_not_divided() -> None:
    alike = images()
    same = SchemeImages(np.tile(alike.vectors[:1], (IMAGES, 1)), alike.regions, alike.captions)
    fitted = Hierarchy().fit(same, seed=0)
    assert len({identified.picture for identified in fitted.trained}) == IMAGES


def test_residual_codes_come_nearer_level_by_level_and_several_are_ordered() -> None:
    vectors = images().vectors
    quantiser = fit_residual(vectors, levels=3, codes=8, seed=0)
    codes = quantiser.encode(vectors)
    rest = vectors.copy()
    errors = []
    for level in range(3):
        rest = rest - quantiser.centres[level][codes[:, level]]
        errors.append(float((rest**2).sum(1).mean()))
    assert errors[0] > errors[1] > errors[2]
    several = quantiser.encode_several(vectors, 3)
    sums = quantiser.centres[np.arange(3), several].sum(2)
    distances = ((vectors[:, np.newaxis] - sums) ** 2).sum(-1)
    assert (np.diff(distances, axis=1) >= -1e-5).all()
    assert len({tuple(code) for code in several[0].tolist()}) == 3


def test_captions_of_several_identifiers_have_their_own() -> None:
    own = images()
    fitted = Several().fit(own, seed=0)
    assert any(len(identified.different) > 1 for identified in fitted.trained)
    assert fitted.assign is not None
    assert all(len(set(each)) == 3 for each in fitted.assign(own))


def test_keywords_are_what_other_captions_do_not_say() -> None:
    fitted = Keywords().fit(images(), seed=0)
    assert str(fitted.trained[7].picture).split()[0] == "7"
