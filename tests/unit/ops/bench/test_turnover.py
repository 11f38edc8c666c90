"""Images come and go: the index has those that are there, and memory does not grow."""

from pathlib import Path

from ops.bench.turnover import Turnover
from workers.query.generation_index import GenerationIndex

IMAGES = 600

# After the first.
TURNS = 5


def bytes_of(index: GenerationIndex) -> int:
    """Of what holds images. Metadata is made anew when thousands of its rows are empty."""
    return index.trie.nbytes + index.gallery.nbytes


def test_an_index_is_as_large_after_many_turns_as_after_the_first(tmp_path: Path) -> None:
    exchange = Turnover(tmp_path, IMAGES, seed=0)
    index = exchange.index
    exchange.turn()
    first, before = exchange.memory(), bytes_of(index)
    for _ in range(TURNS):
        exchange.turn()
    # Those that come are there before those that go have gone.
    rows = exchange.memory()["rows of embeddings"]
    assert first["rows of embeddings"] == rows == 2 * IMAGES
    # Eight bytes for the key of each of the newest 20,000. Postings of a turn would take 24 an
    # image.
    assert bytes_of(index) <= before + (TURNS * 8 + 6) * IMAGES
    assert index.trie.images == IMAGES
    there = index.gallery.slots(exchange.there)
    assert set(there.tolist()) == set(index.trie.searchable_slots().tolist())
    assert exchange.there.min() > (1 + TURNS) * IMAGES
    assert index.metadata.images == (exchange.there % 4 == 0).sum()
    index.close()
