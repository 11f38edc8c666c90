"""Manifests: which images to ingest or train on. JSON Lines, Karpathy's JSON, a folder, or single files."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from schemas.records import ManifestEntry

MAX_ID_LENGTH = 512
_TEXTS = ("captions", "test_captions")


def read_manifest(path: Path) -> list[ManifestEntry]:
    """Entries of a manifest, in its order, with absolute paths. `UsageError` names the file and the line.

    Image files are not opened here: one that is missing or broken becomes a dead letter, not a failed command.
    """
    if path.is_dir():
        return _unique(path, read_folder(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); a manifest is JSON Lines"
        ) from error
    except OSError as error:
        raise UsageError(
            f"manifest {path} cannot be read: {error.strerror}; check the path"
        ) from error
    karpathy = _karpathy_images(text)
    entries = _json_lines(path, text) if karpathy is None else _karpathy(path, karpathy)
    if not entries:
        raise UsageError(
            f'{path} names no images; write one JSON object a line, such as {{"image_id": "a", "path": "a.jpg"}}'
        )
    return _unique(path, entries)


def read_paths(paths: Sequence[Path]) -> list[ManifestEntry]:
    """Entries of folders and single image files, as the command line gives them."""
    entries: list[ManifestEntry] = []
    for path in paths:
        if path.is_dir():
            entries += read_folder(path)
        elif path.exists():
            entries.append(ManifestEntry(image_id=_printable(path.name), path=str(path.absolute())))
        else:
            raise UsageError(f"{path} does not exist; give image files or folders")
    return _unique(Path("the paths given"), entries)


def read_folder(folder: Path) -> list[ManifestEntry]:
    """Every file beneath a folder, sorted, named by its relative path. Hidden files and folders are skipped."""
    entries: list[ManifestEntry] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if not name.startswith("."):
                relative = path.relative_to(folder).as_posix()
                entries.append(
                    ManifestEntry(image_id=_printable(relative), path=str(path.absolute()))
                )
    if not entries:
        raise UsageError(f"folder {folder} holds no files; give a folder with images")
    return entries


def write_manifest(path: Path, entries: Iterable[ManifestEntry]) -> None:
    """Writes JSON Lines. Paths beneath the manifest's folder become relative, so that the folder can be moved."""
    home = path.absolute().parent
    home.mkdir(parents=True, exist_ok=True)
    aside = home / f".{path.name}.new"
    with aside.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(_document(entry, home), ensure_ascii=False) + "\n")
    aside.replace(path)


def _document(entry: ManifestEntry, home: Path) -> dict[str, Any]:
    path = Path(entry.path).absolute()
    document: dict[str, Any] = {
        "image_id": entry.image_id,
        "path": path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path),
    }
    document |= {name: list(getattr(entry, name)) for name in _TEXTS if getattr(entry, name)}
    if entry.split is not None:
        document["split"] = entry.split
    if entry.arrived_at is not None:
        document["arrived_at"] = entry.arrived_at.isoformat()
    return document


def _json_lines(path: Path, text: str) -> list[ManifestEntry]:
    home = path.absolute().parent
    entries: list[ManifestEntry] = []
    # Not splitlines(): a caption may hold U+2028, which JSON allows unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entries.append(_entry(json.loads(line), home))
            except (ValueError, UsageError, RecursionError) as error:
                raise UsageError(f"{path}, line {number}: {error}; correct the line") from error
    return entries


def _entry(document: Any, home: Path) -> ManifestEntry:
    if not isinstance(document, dict):
        raise UsageError(
            f"found a {type(document).__name__}, an object with image_id and path is expected"
        )
    for name in ("image_id", "path"):
        if not isinstance(document.get(name), str) or not document[name]:
            raise UsageError(
                f"{name} is {document.get(name)!r}, a text that is not empty is expected"
            )
    texts = {name: _texts(name, document.get(name)) for name in _TEXTS}
    split, arrived_at = document.get("split"), document.get("arrived_at")
    if split is not None and not isinstance(split, str):
        raise UsageError(f"split is {split!r}, a text such as train or test is expected")
    if arrived_at is not None and not isinstance(arrived_at, str):
        raise UsageError(
            f"arrived_at is {arrived_at!r}, a time such as 2026-01-31T12:00:00+00:00 is expected"
        )
    return ManifestEntry(
        image_id=_checked_id(document["image_id"]),
        path=os.path.normpath(home / _plain("path", document["path"])),
        captions=texts["captions"],
        test_captions=texts["test_captions"],
        split=split,
        arrived_at=None if arrived_at is None else datetime.fromisoformat(arrived_at),
    )


def _texts(name: str, found: Any) -> tuple[str, ...]:
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise UsageError(f"{name} is {str(found)[:80]!r}, a list of texts is expected")
    return tuple(_plain(name, text) for text in found)


def _plain(name: str, text: str) -> str:
    # Postgres cannot store NUL, and half a surrogate pair cannot be written as UTF-8.
    if "\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(
            f"{name} {text[:80]!r} holds a NUL or half a surrogate pair, which no text may hold"
        )
    return text


def _checked_id(image_id: str) -> str:
    if len(image_id) > MAX_ID_LENGTH or any(letter < " " for letter in image_id):
        raise UsageError(
            f"image_id {image_id[:80]!r} is longer than {MAX_ID_LENGTH} letters or holds control characters"
        )
    return _plain("image_id", image_id)


def _printable(name: str) -> str:
    """A file name as an id: bytes that are not UTF-8 and control characters are escaped."""
    escaped = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter >= " " else f"\\x{ord(letter):02x}" for letter in escaped)


def _karpathy_images(text: str) -> list[Any] | None:
    """The images of Karpathy's one-document form, or None when the text is something else."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    images = document.get("images") if isinstance(document, dict) else None
    return images if isinstance(images, list) else None


def _karpathy(path: Path, images: Sequence[Any]) -> list[ManifestEntry]:
    home = path.absolute().parent
    entries: list[ManifestEntry] = []
    for number, image in enumerate(images, start=1):
        try:
            entries.append(_karpathy_entry(image, home))
        except (KeyError, TypeError, UsageError) as error:
            found = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise UsageError(
                f"{path}, image {number}: {found}; each image needs filename and sentences with raw"
            ) from error
    if not any(Path(entry.path).exists() for entry in entries):
        raise UsageError(
            f"none of the {len(entries)} images of {path} is in {home} or {home / 'images'}; put the image folder there"
        )
    return entries


def _karpathy_entry(image: Mapping[str, Any], home: Path) -> ManifestEntry:
    name = _checked_id(str(image["filename"]))
    folder = _plain("filepath", str(image.get("filepath", "")))
    places = [
        home / folder / name,
        home / "images" / folder / name,
        home / "images" / name,
        home / name,
    ]
    captions = _texts(
        "sentences", [sentence["raw"].strip() for sentence in image.get("sentences", [])]
    )
    split = image.get("split")
    entry = ManifestEntry(
        image_id=name,
        path=str(next((place for place in places if place.exists()), places[0])),
        captions=captions,
        # Karpathy's "restval" are COCO validation images that everyone trains on.
        split="train" if split == "restval" else split,
    )
    return replace(entry, captions=(), test_captions=captions) if split == "test" else entry


def _unique(path: Path, entries: list[ManifestEntry]) -> list[ManifestEntry]:
    seen: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        if entry.image_id in seen:
            first = seen[entry.image_id]
            raise UsageError(
                f"{path}: image_id {entry.image_id!r} is both entry {first} and entry {number}; ids must be unique"
            )
        seen[entry.image_id] = number
    return entries
