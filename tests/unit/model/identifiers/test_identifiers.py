"""The construction of identifiers: Semi-NMF, codebook, suffixes, quality."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook, pack_all
from model.identifiers.instance_suffixes import assign_suffixes, nearest_leaves
from model.identifiers.quality import gini, identifier_quality, perplexity
from model.identifiers.seminmf import fit_seminmf, nonnegative_coefficients
from schemas.errors import RefuseToStartError, UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray

SHAPE = IdentifierShape(codes=(4, 3, 3, 4), suffixes=50)


def blobs(count: int, width: int = 16, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8, width))[rng.integers(0, 8, count)] + 0.3 * rng.standard_normal(
        (count, width)
    )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return fit_codebook(blobs(400), CodebookConfig(SHAPE))


def test_coefficients_solve_non_negative_least_squares_like_scipy() -> None:
    rng = np.random.default_rng(1)
    rows, basis = rng.standard_normal((40, 12)), rng.standard_normal((5, 12))
    reference = np.stack([nnls(basis.T, row)[0] for row in rows])
    np.testing.assert_allclose(nonnegative_coefficients(rows, basis), reference, atol=1e-7)


def test_coefficients_are_exact_where_coordinate_descent_alone_crawls() -> None:
    rng = np.random.default_rng(2)
    basis = rng.standard_normal((7, 30))
    basis = np.vstack([basis, -basis.sum(0) + 0.1 * rng.standard_normal(30)])
    basis /= np.linalg.norm(basis, axis=1, keepdims=True)
    rows = rng.standard_normal((60, 30))
    reference = np.stack([nnls(basis.T, row)[0] for row in rows])
    np.testing.assert_allclose(nonnegative_coefficients(rows, basis), reference, atol=1e-7)


def test_the_objective_never_rises_and_coefficients_are_non_negative() -> None:
    rows = blobs(150)
    fitted = fit_seminmf(rows, 6, seed=3)
    assert all(
        later <= earlier + 1e-9
        for earlier, later in zip(fitted.objective, fitted.objective[1:], strict=False)
    )
    assert fitted.objective[-1] < 0.9 * fitted.objective[0]
    assert (nonnegative_coefficients(rows, fitted.basis) >= 0).all()
    np.testing.assert_allclose(np.linalg.norm(fitted.basis, axis=1), 1, atol=1e-5)


def test_out_of_sample_encoding_agrees_with_the_fit_on_training_rows(codebook: Codebook) -> None:
    rows = blobs(400)
    together, alone = (
        codebook.encode(rows),
        np.concatenate([codebook.encode(row[None]) for row in rows]),
    )
    np.testing.assert_array_equal(together, alone)


def test_the_first_code_is_the_nearest_centroid_and_the_fourth_the_nearest_codeword(
    codebook: Codebook,
) -> None:
    rows = blobs(50, seed=9)
    codes = codebook.encode(rows)
    np.testing.assert_array_equal(
        codes[:, 0], ((rows[:, None] - codebook.centroids[None]) ** 2).sum(2).argmin(1)
    )
    residual = rows - codebook.centroids[codes[:, 0]]
    np.testing.assert_array_equal(
        codes[:, 3], ((residual[:, None] - codebook.codewords[0][None]) ** 2).sum(2).argmin(1)
    )


def test_codes_stay_inside_their_levels_for_anything_finite(codebook: Codebook) -> None:
    odd = np.concatenate([np.zeros((2, 16)), np.full((1, 16), 1e6), blobs(20, seed=5)]).astype(
        np.float32
    )
    codes = codebook.encode(odd)
    assert (codes >= 0).all()
    assert (codes < np.array(SHAPE.codes)).all()


def test_the_same_seed_gives_the_same_codebook_and_another_data_another_version(
    codebook: Codebook,
) -> None:
    assert fit_codebook(blobs(400), CodebookConfig(SHAPE)).version == codebook.version
    assert fit_codebook(blobs(400, seed=1), CodebookConfig(SHAPE)).version != codebook.version


@pytest.mark.parametrize(
    "rows", [blobs(1), blobs(3), np.repeat(blobs(1), 30, axis=0)], ids=["one", "three", "identical"]
)
def test_few_or_identical_rows_still_make_a_codebook(rows: FloatArray) -> None:
    book = fit_codebook(rows, CodebookConfig(SHAPE))
    assert len(np.unique(pack_all(book.encode(rows), SHAPE))) == len(np.unique(rows, axis=0))
    assert np.isfinite(book.reconstruct(book.encode(blobs(10, seed=2)))).all()


def test_nan_and_wrong_shapes_are_named(codebook: Codebook) -> None:
    bad = blobs(5)
    bad[3, 2] = np.nan
    with pytest.raises(UsageError, match=r"first rows \[3\]"):
        codebook.encode(bad)
    with pytest.raises(UsageError, match=r"\(N, 16\)"):
        codebook.encode(blobs(5, width=8))
    with pytest.raises(UsageError, match="at least one"):
        fit_codebook(np.zeros((0, 16), np.float32), CodebookConfig(SHAPE))


def test_product_quantisation_packs_its_subspaces_into_one_code() -> None:
    rows = blobs(300)
    book = fit_codebook(
        rows, CodebookConfig(IdentifierShape(codes=(4, 3, 3, 9), suffixes=9), subspaces=2)
    )
    assert book.codewords.shape == (2, 3, 8)
    assert set(np.unique(book.encode(rows)[:, 3])) <= set(range(9))
    with pytest.raises(UsageError, match="2-th power"):
        fit_codebook(
            rows,
            CodebookConfig(SHAPE, subspaces=2).__class__(
                IdentifierShape(codes=(4, 3, 3, 5), suffixes=9), subspaces=2
            ),
        )


def test_components_of_the_vectors_themselves_are_another_codebook_that_survives_saving(
    codebook: Codebook, tmp_path: Path
) -> None:
    rows = blobs(400)
    book = fit_codebook(rows, CodebookConfig(SHAPE, centred=False))
    assert book.version != codebook.version
    codes, centred = book.encode(rows), codebook.encode(rows)
    # id1 and id4 are of centres and residuals in both.
    np.testing.assert_array_equal(codes[:, [0, 3]], centred[:, [0, 3]])
    assert (codes[:, 1] != centred[:, 1]).any()
    for cluster in np.unique(codes[:, 0]):
        members = np.flatnonzero(codes[:, 0] == cluster)
        weights = nonnegative_coefficients(rows[members], book.second[cluster])
        np.testing.assert_array_equal(codes[members, 1], weights.argmax(1))
    book.save(tmp_path)
    loaded = Codebook.load(tmp_path)
    assert (loaded.version, loaded.config.centred) == (book.version, False)
    np.testing.assert_array_equal(loaded.encode(rows), codes)


def test_a_codebook_of_a_version_without_a_choice_keeps_its_hash(
    codebook: Codebook, tmp_path: Path
) -> None:
    codebook.save(tmp_path)
    stored = json.loads((tmp_path / "codebook.json").read_text(encoding="utf-8"))
    assert stored["config"].keys() == {"shape", "subspaces", "seed", "iterations"}
    assert Codebook.load(tmp_path).config.centred


def test_a_codebook_survives_saving_and_a_damaged_one_is_refused(
    codebook: Codebook, tmp_path: Path
) -> None:
    codebook.save(tmp_path)
    loaded = Codebook.load(tmp_path)
    assert loaded.version == codebook.version
    np.testing.assert_array_equal(
        loaded.encode(blobs(30, seed=4)), codebook.encode(blobs(30, seed=4))
    )
    arrays = dict(np.load(tmp_path / "codebook.npz"))
    arrays["centroids"] = arrays["centroids"] + 0.01
    np.savez(tmp_path / "codebook.npz", **arrays)
    with pytest.raises(RefuseToStartError, match="changed or damaged"):
        Codebook.load(tmp_path)


def test_more_levels_reconstruct_better_than_the_first_alone(codebook: Codebook) -> None:
    rows = blobs(400)
    quality = identifier_quality(codebook.encode(rows), rows, codebook)
    first = float(
        ((rows - codebook.centroids[codebook.encode(rows)[:, 0]]) ** 2).sum()
        / ((rows - rows.mean(0)) ** 2).sum()
    )
    assert quality.reconstruction_error < first < 1
    assert quality.neighbour_agreement > 0.5
    assert min(quality.perplexity) >= 1
    assert max(quality.perplexity) <= 4


def test_suffixes_are_unique_inside_a_leaf_and_a_full_leaf_spills_to_its_nearest_relative() -> None:
    shape = IdentifierShape(codes=(2, 2, 2, 2), suffixes=3)
    placed = assign_suffixes(np.array([5] * 5 + [4]), shape)
    pairs = set(zip(placed.leaves.tolist(), placed.suffixes.tolist(), strict=True))
    assert len(pairs) == 6
    assert placed.spilled == 2
    assert set(placed.leaves.tolist()) == {4, 5}
    with pytest.raises(UsageError, match="do not fit"):
        assign_suffixes(np.zeros(49, np.int64), shape)


def test_nearest_leaves_come_nearest_first_and_never_repeat() -> None:
    leaves = nearest_leaves(5, IdentifierShape(codes=(2, 2, 2, 2), suffixes=3), 16)
    assert leaves[:3] == [4, 6, 7]
    assert sorted([*leaves, 5]) == list(range(16))


def test_perplexity_and_gini_have_their_textbook_values() -> None:
    assert perplexity(np.array([0, 1, 2, 3]), 4) == pytest.approx(4)
    assert perplexity(np.array([2, 2, 2]), 4) == pytest.approx(1)
    assert gini(np.array([5, 5, 5])) == pytest.approx(0)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
