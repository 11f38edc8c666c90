"""The shape of identifiers and their packing."""

import itertools

import pytest

from model.network.profiles import profile
from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape

SHAPE = IdentifierShape(codes=(3, 2, 4, 5), suffixes=7)


def test_packing_is_a_bijection_and_keeps_the_order_of_the_tree() -> None:
    codes = list(itertools.product(*(range(count) for count in SHAPE.codes)))
    leaves = [SHAPE.pack(code) for code in codes]
    assert leaves == list(range(SHAPE.leaves))
    assert [SHAPE.unpack(leaf) for leaf in leaves] == codes


def test_prefixes_count_the_nodes_of_a_level() -> None:
    assert [SHAPE.prefixes(level) for level in range(5)] == [1, 3, 6, 24, 120]


@pytest.mark.parametrize("codes", [(3, 0, 0, 0), (0, -1, 0, 0), (0, 0, 0, 5), (0, 0, 0)])
def test_codes_outside_their_level_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(UsageError):
        SHAPE.pack(codes)


@pytest.mark.parametrize("leaf", [-1, 120])
def test_leaves_outside_the_shape_are_refused(leaf: int) -> None:
    with pytest.raises(UsageError, match=r"0\.\.119"):
        SHAPE.unpack(leaf)


@pytest.mark.parametrize(
    ("codes", "suffixes"),
    [((0, 1, 1, 1), 1), ((1, 1, 1, 1), 0), ((1 << 20, 1 << 20, 1 << 20, 4), 2)],
)
def test_impossible_shapes_are_refused(codes: tuple[int, int, int, int], suffixes: int) -> None:
    with pytest.raises(UsageError):
        IdentifierShape(codes=codes, suffixes=suffixes)


def test_the_papers_shape_has_its_million_leaves() -> None:
    assert IdentifierShape(codes=(64, 32, 16, 32), suffixes=256).leaves == 1_048_576


@pytest.mark.parametrize("images", [1, 8_192, 8_193, 50_000, 1_000_000, 1 << 32])
@pytest.mark.parametrize("name", ["tiny", "qwen-3b"])
def test_a_shape_grows_with_the_expected_images_and_not_before(images: int, name: str) -> None:
    before = profile(name).shape
    grown = before.grown_for(images)
    assert grown.comfortable >= images
    assert (grown == before) is (before.comfortable >= images)
    # No larger than needed, and leaves hold about as many images as before.
    assert grown == before or grown.comfortable < 2 * images
    assert max(grown.codes) <= 32 * max(before.codes)
    assert grown.leaves >= before.leaves
    assert grown.suffixes <= 1024


@pytest.mark.parametrize("images", [0, -1, (1 << 32) + 1])
def test_an_impossible_number_of_images_is_refused(images: int) -> None:
    with pytest.raises(UsageError, match="expected number of images"):
        SHAPE.grown_for(images)
