"""Corpus manifests: which images a corpus benchmark trains on, which arrive later, which shift."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from schemas.errors import UsageError
from schemas.records import ManifestEntry
from stream.manifest import list_manifest

# Train, stream, shift.
MOST_MANIFESTS = 3

# One in so many images of a lone manifest without splits is kept to arrive later.
_KEPT_SHARE = 5

Entries = tuple[ManifestEntry, ...]


@dataclass(frozen=True, slots=True)
class BenchCorpus:
    """The images of a corpus benchmark, by what is done with them."""

    name: str
    train: Entries
    """With captions, unless none has any."""
    stream: Entries
    """Arrive later, without captions of their own."""
    told: Entries
    """Of the shift: with captions, which a refresh learns from."""
    untold: Entries
    """Of the shift: without captions, asked before and after that refresh."""
    notes: tuple[str, ...]
    """What a person should know before comparing the figures."""


def read_corpus(manifests: Sequence[Path]) -> BenchCorpus:
    """Read one to three manifests in their order: to train on, to arrive later, a shift.

    `UsageError` when there is nothing to learn from or nothing to ask.
    """
    if not 1 <= len(manifests) <= MOST_MANIFESTS:
        raise UsageError(
            f"sigma bench corpus takes one to {MOST_MANIFESTS} manifests (to train on, to arrive "
            f"later, a shift), got {len(manifests)}; give them in this order"
        )
    notes: list[str] = []
    parts: list[Entries] = []
    for manifest in manifests:
        listing = list_manifest(manifest)
        _require_pictures(listing.entries, manifest)
        parts.append(tuple(listing.entries))
        if listing.left_out:
            first = listing.left_out[0]
            notes.append(f"{len(listing.left_out)} files left out, the first {first.path}")
    if len(parts) == 1:
        parts = _divided(parts[0], notes)
    train = _learnt(parts[0], notes)
    stream = _untold(parts[1])
    _require_queries(stream, manifests[min(1, len(manifests) - 1)])
    told, untold = _shift(parts[2] if len(parts) == MOST_MANIFESTS else (), notes)
    _require_different_ids((*train, *stream, *told, *untold))
    if not any(_has_text(entry.test_captions) for entry in train):
        notes.append("no trained image has test_captions, so seen images are not asked for")
    return BenchCorpus(_name_of(manifests[0]), train, stream, told, untold, tuple(notes))


def _divided(entries: Entries, notes: list[str]) -> list[Entries]:
    """Divide a lone manifest by its splits, or keep some images of one without splits."""
    if any(entry.split == "train" for entry in entries):
        train = tuple(entry for entry in entries if entry.split == "train")
        shift = tuple(entry for entry in entries if entry.split == "shift")
        stream = tuple(entry for entry in entries if entry.split not in ("train", "shift"))
        notes.append("one manifest, divided by its splits")
        return [train, stream, shift]
    kept = {entry.image_id for entry in entries if _number_of(entry) % _KEPT_SHARE == 0}
    notes.append(
        f"one manifest without a split named train: {len(kept)} of its {len(entries)} images, "
        "chosen by their ids, are kept from training and arrive later"
    )
    train = tuple(entry for entry in entries if entry.image_id not in kept)
    return [train, tuple(entry for entry in entries if entry.image_id in kept), ()]


def _number_of(entry: ManifestEntry) -> int:
    """A number that depends on the id alone, so that an image is always on the same side."""
    # Salted: a corpus may have been divided by the plain hash of its ids before.
    salted = f"arrives later: {entry.image_id}"
    return int(hashlib.sha1(salted.encode(), usedforsecurity=False).hexdigest(), 16)


def _require_pictures(entries: Sequence[ManifestEntry], manifest: Path) -> None:
    """Refuse a manifest whose pictures are elsewhere, before hours are spent on another one."""
    if not any(os.path.exists(entry.path) for entry in entries):
        raise UsageError(
            f"none of the {len(entries)} pictures of {manifest} exists, the first is "
            f"{entries[0].path}; paths are relative to the manifest"
        )


def _learnt(entries: Entries, notes: list[str]) -> Entries:
    """The images with captions, or all of them where none has any."""
    captioned = tuple(entry for entry in entries if _has_text(entry.captions))
    if captioned:
        return captioned
    notes.append("no trained image has captions: pictures with noise stood for queries")
    return entries


def _require_queries(stream: Entries, manifest: Path) -> None:
    if not any(_has_text(entry.queries) for entry in stream):
        raise UsageError(
            f"none of the {len(stream)} images in {manifest} that arrive later has "
            "`test_captions` or `captions`, so nothing can be asked for; add them to its lines"
        )


def _shift(entries: Entries, notes: list[str]) -> tuple[Entries, Entries]:
    """The images of the shift that a refresh learns from, and those that it does not."""
    if not entries:
        notes.append("no shift was given (the third manifest), so no refresh is measured")
        return (), ()
    told = [entry for entry in entries if _has_text(entry.captions)]
    untold = [entry for entry in entries if not _has_text(entry.captions)]
    if not told:
        notes.append("no image of the shift has captions, so no refresh is measured")
    elif not untold:
        notes.append("all images of the shift have captions: those of every second are kept back")
        untold = told[1::2]
        told = told[::2]
    if not any(_has_text(entry.queries) for entry in untold):
        notes.append("no image of the shift without captions has test_captions to ask for")
    return tuple(told), _untold(untold)


def _untold(entries: Sequence[ManifestEntry]) -> Entries:
    """The same images, to be asked for and never to be learnt from."""
    return tuple(
        replace(entry, captions=(), test_captions=entry.queries, split=None) for entry in entries
    )


def _require_different_ids(entries: Sequence[ManifestEntry]) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.image_id in seen:
            raise UsageError(
                f"image ids must be unique over all manifests, got {entry.image_id!r} twice; give "
                "each image to one manifest"
            )
        seen.add(entry.image_id)


def _has_text(texts: Sequence[str]) -> bool:
    return any(text.strip() for text in texts)


def _name_of(manifest: Path) -> str:
    """The folder's name: manifests of different corpora have the same names."""
    place = manifest.resolve()
    return place.name if place.is_dir() else place.parent.name
