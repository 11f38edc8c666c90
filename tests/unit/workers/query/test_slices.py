"""Slices of changes: the decode thread applies them one by one, and ends where the whole ends."""

from pathlib import Path
from typing import Any, cast

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model.decoding.beam import TextDecodingEngine
from tests.unit.workers.query.engines import SHAPE, UnitEncoder
from workers.query.gallery import Gallery
from workers.query.trie_engine import TrieEngine
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows

KEYS = st.integers(1, 30)


def changes_of(leaves_of: dict[int, list[int]], deleted: set[int]) -> Changes:
    """Images with their leaves, best first; postings come in the order of leaves, not of images."""
    postings = sorted(
        (leaf, key, key if rank == 0 else -1)
        for key, leaves in leaves_of.items()
        for rank, leaf in enumerate(leaves)
    )
    leaves, keys, suffixes = np.array(postings, np.int64).reshape(-1, 3).T
    count = len(leaves_of)
    return Changes(
        PostingRows(leaves, keys, np.zeros(len(keys), np.float32), suffixes),
        EmbeddingRows(
            np.array(sorted(leaves_of), np.int64),
            np.ones((count, 2), np.float16),
            np.zeros(count, np.float32),
            np.zeros(count, np.bool_),
        ),
        np.array(sorted(deleted), np.int64),
    )


def contents(engine: TrieEngine) -> set[tuple[int, int]]:
    """Leaf and image key of each posting."""
    reached = engine.trie.reached(np.arange(SHAPE.leaves))
    keys = engine.gallery.keys(reached.slots).tolist()
    return set(zip(reached.source.tolist(), keys, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(KEYS, st.lists(st.integers(0, 15), min_size=1, max_size=3, unique=True)),
    st.sets(KEYS),
    st.integers(1, 5),
)
def test_slices_bring_what_the_whole_brings(
    tmp_path_factory: Any, leaves_of: dict[int, list[int]], deleted: set[int], most: int
) -> None:
    folder: Path = tmp_path_factory.mktemp("gallery")
    decoding = cast(TextDecodingEngine[Any], None)
    whole, sliced = (
        TrieEngine(1, SHAPE, UnitEncoder(), decoding, Gallery.open(folder)) for _ in range(2)
    )
    first = changes_of({key: [key % 16] for key in range(31, 41)}, set())
    second = changes_of(leaves_of, deleted | {31, 32})
    searchable: list[int] = []
    for changes in (first, second):
        expected = whole.apply(changes).tolist()
        searchable = []
        for part in changes.slices(most):
            assert part
            assert max(len(part.embeddings), len(part.deleted)) <= most
            searchable += sliced.apply(part).tolist()
        assert searchable == expected
    assert contents(sliced) == contents(whole)
    assert sliced.images == whole.images == len(leaves_of.keys() - deleted) + 8
    whole.close()
    sliced.close()


def test_a_new_version_is_there_before_the_old_one_goes() -> None:
    parts = list(changes_of({2: [1], 3: [1]}, {1}).slices(1))
    assert [part.embeddings.image_keys.tolist() for part in parts] == [[2], [3], []]
    assert [part.deleted.tolist() for part in parts] == [[], [], [1]]


def test_no_changes_have_no_slices() -> None:
    assert list(changes_of({}, set()).slices(4)) == []
