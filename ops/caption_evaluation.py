"""Caption evaluation: what the model says of identifiers, of the own ones and of exchanged ones."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model.decoding.explain import explain_all
from model.network.encoder import Encoder
from model.retrieval.recall import wilson
from model.training.comprehension import compare_identifiers, exchanged_rows
from ops.evaluation_queries import GalleryImage
from ops.scenes.caption_words import ALL_KINDS, KINDS, right_kinds, scene_of
from schemas.records import ByteArray, FloatArray, IntArray, JsonObject, ManifestEntry
from workers.query.model_engine import ModelEngine
from workers.query.searcher import Searcher
from workers.repository.connection import Connection
from workers.repository.generations import learnt_captions
from workers.repository.postings import identifiers_of
from workers.runtime.pictures import StoredPictures

# Images whose identifiers are explained.
MOST_IMAGES = 100

# Texts that are embedded at once.
_TEXT_BATCH = 256


@dataclass(frozen=True, slots=True)
class KindFigures:
    """How often captions of N scenes name attributes of one kind rightly, as shares."""

    own: float
    """Generated behind the own identifier."""
    shuffled: float
    """Generated behind another image's identifier."""
    nearest: float
    """The training caption that the encoder finds nearest to the picture."""
    own_where_nearest: float | None
    """Of `own`, in the images where the nearest caption is right; None where it never is."""


@dataclass(frozen=True, slots=True)
class CaptionEvaluation:
    """Captions of N identifiers beside those of exchanged ones."""

    split: str
    """`unseen` where there are such images, else `seen`."""
    images: int
    own: float
    """CIDEr-D, 0 to 10."""
    shuffled: float
    wins: float
    """Share of the images whose caption is likelier behind the own identifier."""
    wins_interval: tuple[float, float]
    """95% Wilson interval."""
    distinct: int
    """Different captions that were generated."""
    words: Mapping[str, KindFigures]
    """By kind of word; of generated scenes only, and only where it was asked for."""

    def to_json(self) -> JsonObject:
        """`captions` in the document of `sigma evaluate`."""
        document: JsonObject = {
            "split": self.split,
            "images": self.images,
            "own": self.own,
            "shuffled": self.shuffled,
            "wins": self.wins,
            "wins_95%": list(self.wins_interval),
            "distinct": self.distinct,
        }
        if self.words:
            document["words"] = {kind: asdict(figures) for kind, figures in self.words.items()}
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "CaptionEvaluation":
        """Read what `to_json` wrote."""
        words = document.get("words", {}).items()
        low, high = document["wins_95%"]
        return cls(
            split=document["split"],
            images=document["images"],
            own=document["own"],
            shuffled=document["shuffled"],
            wins=document["wins"],
            wins_interval=(low, high),
            distinct=document["distinct"],
            words={kind: KindFigures(**figures) for kind, figures in words},
        )

    def to_text(self) -> list[str]:
        """The same for people."""
        lines = [
            f"captions of {self.images} {self.split} identifiers: CIDEr-D {self.own:.2f}, of "
            f"exchanged ones {self.shuffled:.2f}; the own one is likelier in "
            f"{100 * self.wins:.0f}%; {self.distinct} different captions"
        ]
        for kind, figures in self.words.items():
            kept = figures.own_where_nearest
            lines.append(
                f"  {kind:<26} right in {100 * figures.own:.0f}%, exchanged "
                f"{100 * figures.shuffled:.0f}%, nearest training caption "
                f"{100 * figures.nearest:.0f}%"
                + ("" if kept is None else f", of those {100 * kept:.0f}%")
            )
        return lines


def evaluate_captions(
    searcher: Searcher[ModelEngine],
    conn: Connection,
    entries: Sequence[ManifestEntry],
    images: Sequence[GalleryImage],
    *,
    limit: int | None,
    seed: int,
    with_words: bool = False,
) -> CaptionEvaluation | None:
    """Explain identifiers of the manifest's images, at most `MOST_IMAGES`; None without captions.

    None too where the generation learnt none, and identifiers say nothing in words.

    With `with_words` the words of generated scenes are judged too, beside the training caption that
    the encoder finds nearest, which embeds every training caption.
    """
    if not learnt_captions(conn, searcher.generation):
        return None
    asked = _asked_images(
        searcher, conn, entries, images, min(limit or MOST_IMAGES, MOST_IMAGES), seed
    )
    if asked is None:
        return None
    sigma = searcher.engine.checkpoint.sigma
    references = [(*entry.captions, *entry.test_captions) for entry in asked.entries]
    captions = [entry.queries[0] for entry in asked.entries]
    compared = compare_identifiers(sigma, asked.identifiers, captions, references, seed)
    words: dict[str, KindFigures] = {}
    if with_words:
        words = _judge_words(searcher, entries, images, asked, seed)
    count = len(asked.entries)
    return CaptionEvaluation(
        split=asked.split,
        images=count,
        own=compared.cider,
        shuffled=compared.shuffled_cider,
        wins=compared.wins,
        wins_interval=wilson(round(compared.wins * count), count),
        distinct=compared.distinct,
        words=words,
    )


@dataclass(frozen=True, slots=True)
class _AskedImages:
    """N images whose identifiers are explained."""

    split: str
    entries: Sequence[ManifestEntry]
    images: Sequence[GalleryImage]
    identifiers: IntArray
    """(N, 5)"""


def _asked_images(
    searcher: Searcher[ModelEngine],
    conn: Connection,
    entries: Sequence[ManifestEntry],
    images: Sequence[GalleryImage],
    limit: int,
    seed: int,
) -> _AskedImages | None:
    """A seeded sample of the unseen images, or of the seen ones where there are no others."""
    by_id = {image.image_id: image for image in images}
    pairs: list[tuple[ManifestEntry, GalleryImage]] = []
    for entry in entries:
        image = by_id.get(entry.image_id)
        if image is not None and any(text.strip() for text in entry.queries):
            pairs.append((entry, image))
    unseen = [pair for pair in pairs if not pair[1].trained]
    chosen = unseen or pairs
    order = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:limit]).tolist()
    chosen = [chosen[row] for row in order]
    generation = searcher.generation
    keys = [image.image_key for _, image in chosen]
    identifiers = identifiers_of(conn, generation.id, generation.shape, keys)
    # An image may have been deleted since the gallery was read.
    chosen = [pair for pair in chosen if pair[1].image_key in identifiers]
    if not chosen:
        return None
    return _AskedImages(
        split="unseen" if unseen else "seen",
        entries=[entry for entry, _ in chosen],
        images=[image for _, image in chosen],
        identifiers=np.array([identifiers[image.image_key] for _, image in chosen], np.int64),
    )


def _judge_words(
    searcher: Searcher[ModelEngine],
    entries: Sequence[ManifestEntry],
    images: Sequence[GalleryImage],
    asked: _AskedImages,
    seed: int,
) -> dict[str, KindFigures]:
    """The words of generated captions, of exchanged and of nearest ones; by kind."""
    scenes = [scene_of(entry) for entry in asked.entries]
    rows = [row for row, scene in enumerate(scenes) if scene is not None]
    trained = {image.image_id for image in images if image.trained}
    texts: list[str] = []
    for entry in entries:
        if entry.image_id in trained:
            texts += [text for text in entry.captions if text.strip()]
    if not rows or not texts:
        return {}
    pictures = StoredPictures(searcher.store, [image.uri for image in asked.images])
    generated = explain_all(searcher.engine.decoder, asked.identifiers.tolist())
    others = exchanged_rows(asked.identifiers, seed)
    nearest = nearest_texts(searcher.engine.checkpoint.encoder, list(pictures), texts)
    own: list[dict[str, bool]] = []
    shuffled: list[dict[str, bool]] = []
    best: list[dict[str, bool]] = []
    for row in rows:
        scene = scenes[row]
        if scene is not None:
            own.append(right_kinds(generated[row], scene))
            shuffled.append(right_kinds(generated[others[row]], scene))
            best.append(right_kinds(nearest[row], scene))
    return {kind: kind_figures(kind, own, shuffled, best) for kind in (*KINDS, ALL_KINDS)}


def kind_figures(
    kind: str,
    own: Sequence[Mapping[str, bool]],
    shuffled: Sequence[Mapping[str, bool]],
    nearest: Sequence[Mapping[str, bool]],
) -> KindFigures:
    """Shares of N captions each that are right in one kind of word."""
    where_nearest = [
        mine[kind] for mine, encoders in zip(own, nearest, strict=True) if encoders[kind]
    ]
    return KindFigures(
        own=float(np.mean([right[kind] for right in own])),
        shuffled=float(np.mean([right[kind] for right in shuffled])),
        nearest=float(np.mean([right[kind] for right in nearest])),
        own_where_nearest=float(np.mean(where_nearest)) if where_nearest else None,
    )


def nearest_texts(
    encoder: Encoder, pictures: Sequence[ByteArray], texts: Sequence[str]
) -> list[str]:
    """Of T texts the one that the encoder finds nearest to each of N pictures."""
    vectors = encoder.embed_images(pictures)
    parts: list[FloatArray] = []
    for start in range(0, len(texts), _TEXT_BATCH):
        parts.append(encoder.embed_texts(texts[start : start + _TEXT_BATCH]))
    best = (vectors @ np.concatenate(parts).T).argmax(1)
    return [texts[row] for row in best.tolist()]
