"""The records of answers. Their readers ignore fields that they do not know."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

MetadataValue = str | int | float | bool | list[str]
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One image of an answer."""

    rank: int
    image_id: str
    score: float
    """Higher is better; comparable within an answer only."""
    relevance: float | None
    """From 0 to 1, comparable between texts; None where the service has none."""
    identifier: tuple[int, ...]
    link: str
    """Opens the picture in a browser, for an hour at least."""
    uri: str
    captions: tuple[str, ...]
    metadata: Mapping[str, MetadataValue]
    cosine: float | None
    """With the query's vector; None unless explained."""

    @classmethod
    def from_json(cls, document: Json) -> "Result":
        """Read a result."""
        return cls(
            document["rank"],
            document["image_id"],
            document["score"],
            document.get("relevance"),
            tuple(document["identifier"]),
            document["link"],
            document["uri"],
            tuple(document["captions"]),
            document["metadata"],
            document.get("cosine"),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A page of images, best first."""

    results: tuple[Result, ...]
    generation: int
    took_ms: float
    candidates: int
    """Images that were scored."""
    cursor: str | None
    """Brings the next page; None on the last one."""
    leaves: Mapping[tuple[int, ...], float] | None
    """Log-probabilities of the leaves that were reached; None unless explained."""

    @classmethod
    def from_json(cls, document: Json) -> "Answer":
        """Read an answer."""
        explanation = document.get("explanation")
        leaves = None
        if explanation is not None:
            leaves = {tuple(x["codes"]): x["log_probability"] for x in explanation["leaves"]}
        return cls(
            tuple(Result.from_json(result) for result in document["results"]),
            document["generation"],
            document["took_ms"],
            document["candidates"],
            document.get("cursor"),
            leaves,
        )


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What is stored of an image."""

    image_id: str
    version: int
    state: str
    """`accepted` until it can be found, then `indexed`."""
    link: str
    uri: str
    captions: tuple[str, ...]
    metadata: Mapping[str, MetadataValue]
    width: int
    height: int
    checksum: str
    """SHA-256 of the bytes that arrived."""
    arrived_at: datetime
    identifier: tuple[int, ...] | None
    """In the live generation; None in lists."""

    @classmethod
    def from_json(cls, document: Json) -> "StoredImage":
        """Read an image."""
        identifier = document.get("identifier")
        return cls(
            document["image_id"],
            document["version"],
            document["state"],
            document["link"],
            document["uri"],
            tuple(document["captions"]),
            document["metadata"],
            document["width"],
            document["height"],
            document["checksum"],
            datetime.fromisoformat(document["arrived_at"]),
            None if identifier is None else tuple(identifier),
        )


@dataclass(frozen=True, slots=True)
class ImagePage:
    """Images in the order of their ids."""

    images: tuple[StoredImage, ...]
    cursor: str | None

    @classmethod
    def from_json(cls, document: Json) -> "ImagePage":
        """Read a page."""
        images = tuple(StoredImage.from_json(image) for image in document["images"])
        return cls(images, document.get("cursor"))


@dataclass(frozen=True, slots=True)
class WrittenImage:
    """An image that was put."""

    image_id: str
    version: int
    searchable: bool
    token: str
    """For `wait_searchable`."""

    @classmethod
    def from_json(cls, document: Json) -> "WrittenImage":
        """Read what PUT answers."""
        return cls(
            document["image_id"],
            document["version"],
            document["state"] == "searchable",
            document["token"],
        )


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An event that could not be used."""

    image_id: str
    code: str
    reason: str
    published_at: datetime

    @classmethod
    def from_json(cls, document: Json) -> "DeadLetter":
        """Read a dead letter."""
        return cls(
            document["image_id"],
            document["code"],
            document["reason"],
            datetime.fromisoformat(document["published_at"]),
        )
