"""Searcher: which ranked images are shown, how, and which queries are refused."""

from tests.unit.workers.query.engines import MOMENT, ranked
from workers.query.searcher import (
    AnsweredQuery,
    found_images,
    hits_of,
)
from workers.repository.stored_images import StoredImage


def stored(key: int, state: str = "indexed") -> StoredImage:
    name = f"image-{key}"
    return StoredImage(
        key, name, 1, state, f"file:///{name}", f"{key}.png", (), (), None, MOMENT, None
    )


IDENTIFIERS = {1: [0, 0, 0, 0, 1], 2: [0, 0, 0, 0, 2], 3: [0, 0, 0, 0, 3]}


def test_images_deleted_since_they_were_ranked_are_left_out_and_the_next_ones_move_up() -> None:
    known = {1: stored(1), 2: stored(2, "deleted"), 3: stored(3)}
    found = found_images(ranked([2, 3, 1]), known, IDENTIFIERS, 2)
    assert [image.stored.image_key for image in found] == [3, 1]


def test_images_without_row_or_identifier_are_left_out() -> None:
    known = {1: stored(1), 3: stored(3)}
    found = found_images(ranked([1, 2, 3]), known, {1: [0] * 5, 2: [0] * 5}, 10)
    assert [image.stored.image_key for image in found] == [1]


def test_no_more_images_are_shown_than_asked_for() -> None:
    known = {1: stored(1), 2: stored(2), 3: stored(3)}
    assert len(found_images(ranked([1, 2, 3]), known, IDENTIFIERS, 2)) == 2


def test_hits_are_numbered_from_one_and_carry_links_and_rounded_scores() -> None:
    known = {1: stored(1), 2: stored(2)}
    found = found_images(ranked([2, 1]), known, IDENTIFIERS, 10)
    hits = hits_of(found, lambda uri: f"https://store/{uri}")
    assert [(hit.rank, hit.image_id, hit.score) for hit in hits] == [
        (1, "image-2", 0.0),
        (2, "image-1", -1.0),
    ]
    assert hits[0].link == "https://store/2.png"
    assert hits[0].identifier == (0, 0, 0, 0, 2)


def test_an_answer_cut_short_keeps_hits_and_captions_together() -> None:
    known = {1: stored(1), 2: stored(2)}
    hits = hits_of(found_images(ranked([2, 1]), known, IDENTIFIERS, 10), str)
    answer = AnsweredQuery("a text", 5, hits, 40, (("two",), ("one",)))
    document = answer.first(1).to_dict(1.234)
    assert [result["captions"] for result in document["results"]] == [["two"]]
    assert (document["candidates"], document["took_ms"]) == (40, 1.23)
