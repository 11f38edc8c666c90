"""Queries of an evaluation: the captions of a manifest's images that a generation holds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model.retrieval.recall import CUTOFFS
from schemas.records import ManifestEntry
from workers.repository.connection import Connection, fetch_rows

# Images of an answer that are looked at.
DEPTH = max(CUTOFFS)

# Queries decoded together, as many as the query worker takes at once.
_QUERY_BATCH = 16

# Images read with one query of the database.
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class EvaluationQueries:
    """Captions with the key of the image that each describes, in the same order."""

    texts: tuple[str, ...]
    image_keys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def batches(self) -> Iterator["EvaluationQueries"]:
        """All of them in order, a few at a time."""
        for start in range(0, len(self), _QUERY_BATCH):
            end = start + _QUERY_BATCH
            yield EvaluationQueries(self.texts[start:end], self.image_keys[start:end])


@dataclass(frozen=True, slots=True)
class GalleryImage:
    """One image of the generation."""

    image_key: int
    image_id: str
    uri: str
    """Of the normalised picture."""
    trained: bool


def queries_by_split(
    entries: Sequence[ManifestEntry], images: Sequence[GalleryImage], limit: int | None, seed: int
) -> dict[str, EvaluationQueries]:
    """The queries of each split that has any, seen images first.

    Seen images are asked for by `test_captions` only, for training has read their `captions`;
    unseen images without `test_captions` by `captions`.
    """
    by_id = {image.image_id: image for image in images}
    texts: dict[str, list[str]] = {"seen": [], "unseen": []}
    image_keys: dict[str, list[int]] = {"seen": [], "unseen": []}
    for entry in entries:
        image = by_id.get(entry.image_id)
        if image is None:
            continue
        split = "seen" if image.trained else "unseen"
        # What training has read would be recalled, not found.
        for text in entry.test_captions if image.trained else entry.queries:
            if text.strip():
                texts[split].append(text)
                image_keys[split].append(image.image_key)
    rng = np.random.default_rng(seed)
    splits = {}
    for split, own_texts in texts.items():
        chosen = list(range(len(own_texts)))
        if limit is not None and len(chosen) > limit:
            # In the manifest's order, so that a sample decodes in the same batches in every run.
            chosen = sorted(rng.permutation(len(own_texts))[:limit].tolist())
        if chosen:
            splits[split] = EvaluationQueries(
                tuple(own_texts[position] for position in chosen),
                tuple(image_keys[split][position] for position in chosen),
            )
    return splits


def read_gallery(conn: Connection, generation: int) -> list[GalleryImage]:
    """All images of a generation, in ascending key."""
    images: list[GalleryImage] = []
    after = 0
    while page := fetch_rows(conn, "image_page", generation=generation, after=after, amount=_PAGE):
        images += [GalleryImage(*columns) for columns in page]
        after = images[-1].image_key
    return images
