"""The gallery and its slot map against plain dictionaries, while images come and go."""

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import HalfArray, IntArray
from workers.query import gallery as gallery_module
from workers.query.gallery import Gallery
from workers.query.slot_map import SlotMap

# Keys of three pages of the slot map, near their borders too.
KEYS = st.integers(0, 40_000) | st.sampled_from([0, 16_383, 16_384, 32_767, 32_768])

# Images that come, in any order, and images that go.
STEPS = st.lists(
    st.tuples(st.lists(KEYS, unique=True, max_size=40), st.sets(KEYS, max_size=40)), max_size=8
)


@contextmanager
def open_gallery() -> Iterator[Gallery]:
    with tempfile.TemporaryFile() as file:
        gallery = Gallery(file)
        yield gallery
        gallery.close()


def embeddings_of(keys: list[int]) -> HalfArray:
    """Embeddings that tell keys apart."""
    return np.array([[key % 2048, key // 2048] for key in keys], np.float16).reshape(-1, 2)


def array_of(keys: list[int]) -> IntArray:
    return np.array(keys, np.int64)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_slot_map_equals_a_dictionary(steps: list[tuple[list[int], set[int]]]) -> None:
    slots, reference = SlotMap(), dict[int, int]()
    for number, (come, go) in enumerate(steps):
        new = [key for key in come if key not in reference]
        # Slots that follow each other at even steps, any others at odd ones.
        own = [number * 100 + place * (1 if number % 2 else -1) for place in range(len(new))]
        slots.add(array_of(new), array_of(own))
        reference |= zip(new, own, strict=True)
        gone = [key for key in go if key in reference]
        slots.remove(array_of(gone))
        for key in gone:
            del reference[key]
        asked = [*come, *go, *reference]
        expected = [reference.get(key, -1) for key in asked]
        assert slots.get(array_of(asked)).tolist() == expected
        assert slots.nbytes <= 6 * len(reference)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_a_gallery_finds_the_images_that_it_has(steps: list[tuple[list[int], set[int]]]) -> None:
    with open_gallery() as gallery:
        stored, gone = set[int](), set[int]()
        most = 0
        for come, go in steps:
            slots = gallery.add(array_of(come), embeddings_of(come))
            stored |= set(come) - gone
            most = max(most, len(stored))
            assert [slot < 0 for slot in slots.tolist()] == [key in gone for key in come]
            gallery.remove(array_of([*go, *go]))
            # Keys that it never had are no images that were removed.
            gone |= go & stored
            stored -= go
            keys = sorted(stored)
            slots = gallery.slots(array_of(keys))
            assert len(set(slots.tolist())) == len(keys)
            assert gallery.keys(slots).tolist() == keys
            assert gallery.embeddings[slots].tolist() == embeddings_of(keys).tolist()
            assert set(gallery.slots(array_of([*go, 50_000])).tolist()) == {-1}
        # The slots of images that are gone are used again.
        assert gallery.size == most


def test_memory_stays_as_it_was_while_images_come_and_go() -> None:
    with open_gallery() as gallery:
        rng = np.random.default_rng(0)
        alive = np.arange(5000)
        gallery.add(alive, embeddings_of(alive.tolist()))
        sizes = []
        for start in range(5000, 400_000, 5000):
            alive = rng.permutation(alive)
            gallery.remove(alive[:2500])
            come = np.arange(start, start + 2500)
            gallery.add(come, embeddings_of(come.tolist()))
            alive = np.concatenate([alive[2500:], come])
            sizes.append((gallery.size, gallery.nbytes))
        # The keys that it remembers in order are bounded, and all there after twenty rounds.
        assert {size for size, _ in sizes} == {5000}
        assert max(nbytes for _, nbytes in sizes[20:]) <= 1.1 * min(n for _, n in sizes[20:])


def test_keys_out_of_order_cost_no_more_than_six_bytes() -> None:
    with open_gallery() as gallery:
        keys = np.random.default_rng(0).permutation(60_000)
        gallery.add(np.array([10**6]), embeddings_of([1]))
        before = gallery.nbytes
        gallery.add(keys, embeddings_of(keys.tolist()))
        # The keys that it remembers in order are bounded.
        assert gallery.nbytes - before <= 6 * len(keys) + 20_000 * 8
        assert gallery.slots(keys).tolist() == list(range(1, 60_001))


def test_keys_in_order_cost_nothing_and_gaps_a_bit() -> None:
    keys = np.arange(100_000)
    slots = SlotMap()
    slots.add(keys, keys)
    assert slots.nbytes <= 4 * 7
    gone = keys[::10]
    slots.remove(gone)
    assert slots.nbytes <= len(keys) / 8 + 2048
    assert slots.get(keys).tolist() == [-1 if key % 10 == 0 else key for key in keys.tolist()]


def test_the_newest_images_are_those_that_came_last() -> None:
    with open_gallery() as gallery:
        gallery.add(array_of([7, 3]), embeddings_of([7, 3]))
        gallery.remove(array_of([7]))
        gallery.add(array_of([5, 4]), embeddings_of([5, 4]))
        assert gallery.newest(3).tolist() == [3, 5, 4]


class Asked:
    """In place of a mapping: what the disk is asked for."""

    def __init__(self) -> None:
        self.bytes: set[int] = set()

    def madvise(self, option: int, begin: int = 0, size: int = 0) -> None:
        if option != mmap.MADV_WILLNEED:
            assert not size
            return
        assert begin % mmap.PAGESIZE == 0
        self.bytes |= set(range(begin, begin + size))


def test_rows_that_are_not_in_memory_are_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = iter([5, 5, 5, 6])
    monkeypatch.setattr(gallery_module, "_disk_reads", lambda: next(reads))
    asked = Asked()
    with open_gallery() as gallery:
        gallery.prefetch(np.arange(100))
        keys = list(range(3000))
        gallery.add(array_of(keys), np.zeros((3000, 300), np.float16))
        gallery.__dict__["_mapping"] = asked
        slots = np.arange(0, 3000, 50)
        # The first of them were in memory.
        gallery.prefetch(slots)
        assert not asked.bytes
        gallery.prefetch(slots)
        # A row is a key of eight bytes and 300 numbers of two, and pages in between stay away.
        for slot in slots.tolist():
            assert set(range(608 * slot, 608 * (slot + 1))) <= asked.bytes
        assert 608 * 25 not in asked.bytes


def test_a_gallery_that_has_forgotten_its_pages_has_the_same_rows() -> None:
    with open_gallery() as gallery:
        keys = list(range(5000))
        gallery.cool()
        gallery.add(array_of(keys), embeddings_of(keys))
        gallery.cool()
        gallery.prefetch(np.arange(4999, 0, -7))
        np.testing.assert_array_equal(gallery.embeddings, embeddings_of(keys))
