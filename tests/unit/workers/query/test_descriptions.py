"""Descriptions: what answers show of an image, and what is remembered without the database."""

from typing import cast

import pytest

from schemas.errors import RetryLaterError
from stream.images.redaction import uri_for_answer
from tests.unit.workers.query.engines import MOMENT, SHAPE, Closing, unreachable
from workers.query import descriptions
from workers.query.descriptions import (
    MAX_CAPTION_LETTERS,
    MAX_CAPTIONS,
    DescribedImages,
    Descriptions,
    ImageMemory,
    shown_image,
)
from workers.repository.connection import Connection
from workers.repository.stored_images import StoredImage


def stored(key: int, uri: str = "file:///a.png", captions: tuple[str, ...] = ()) -> StoredImage:
    return StoredImage(
        key, f"image-{key}", 1, "indexed", uri, f"{key}.png", captions, (), None, MOMENT, None
    )


def described(*keys: int) -> DescribedImages:
    return DescribedImages({key: stored(key) for key in keys}, {key: [0] * 5 for key in keys})


SIGNED = [
    "https://host/a.png?X-Amz-Signature=SECRET",
    "https://user:SECRET@host/a.png",
    "https://host/a.png#SECRET",
    "s3://key:SECRET@bucket/a.png",
    "HTTPS://host/a.png?sig=SECRET&se=2026",
    "https:\\\\user:SECRET@host\\a.png",
    "gs://bucket/a.png?GoogleAccessId=x&Signature=SECRET",
]


@pytest.mark.parametrize("uri", SIGNED)
def test_a_signature_or_password_of_an_address_is_not_shown(uri: str) -> None:
    shown = shown_image(stored(1, uri)).uri
    assert "SECRET" not in shown
    assert "a.png" in shown or "[hidden]" in shown


def test_addresses_without_secrets_stay_and_are_bounded() -> None:
    for uri in ("file:///photos/a?b.png", "s3://bucket/folder/a.png", "https://host:8443/a.png"):
        assert uri_for_answer(uri) == uri
    assert len(uri_for_answer("file:///" + "a" * 100_000)) == 2000
    assert uri_for_answer("file:///a\x1b[2J\nb") == "file:///a?[2J?b"


def test_captions_are_bounded_in_number_and_length() -> None:
    many = shown_image(stored(1, captions=("x" * 4_000_000,) * 50)).captions
    assert len(many) == MAX_CAPTIONS
    assert all(len(caption) == MAX_CAPTION_LETTERS for caption in many)
    assert many[0].endswith("…")
    assert shown_image(stored(1, captions=("short", "two"))).captions == ("short", "two")


def test_the_memory_keeps_what_was_described_last_and_knows_what_is_missing() -> None:
    memory = ImageMemory(capacity=3)
    memory.remember([1, 2], described(1))
    assert memory.knows([1, 2])
    assert not memory.knows([1, 3])
    assert list(memory.recall([1, 2, 3]).stored) == [1]
    memory.remember([1], described(1))
    memory.remember([3, 4], described(3, 4))
    assert memory.knows([1, 3, 4])
    assert not memory.knows([2])
    memory.forget([3])
    assert not memory.knows([3])


def test_without_database_what_is_remembered_is_told_and_the_rest_refused_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [0.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    monkeypatch.setattr(descriptions.time, "sleep", sleep)

    class Lost(Closing):
        closed = True

    reader = Descriptions(cast(Connection, Lost()), unreachable, 1, SHAPE, clock=lambda: now_s[0])
    reader.memory.remember([1, 2], described(1, 2))
    # 3 is only a spare, so its absence harms nobody.
    assert list(reader.read([1, 2, 3], needed={1, 2}).stored) == [1, 2]
    assert now_s == [0.0]
    with pytest.raises(RetryLaterError, match="not all images are in memory"):
        reader.read([1, 3], needed={1, 3})
    assert now_s[0] < 4
