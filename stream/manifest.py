"""Manifests: which images to ingest or to train on.

A manifest is JSON Lines, one object with `image_id` and `path` a line; or the one JSON document of
Karpathy's splits of Flickr30k and COCO; or a folder. The command line also takes single files.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from schemas.errors import UsageError
from schemas.metadata import checked_metadata
from schemas.records import JsonObject, ManifestEntry, storable_time

# Characters of an image id; the event schemas allow as many.
MAX_ID_LENGTH = 512

_LINKED = (
    "it is a link to a folder, and links may be loops; give the folder that it leads to as well"
)

# Characters of a wrong value that a message shows.
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or a folder that was named or found, and whose images are not among the entries."""

    path: str
    reason: str
    code: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries of a manifest or of folders, and what of them was left out."""

    entries: list[ManifestEntry]
    left_out: list[LeftOut] = field(default_factory=list)
    hidden: int = 0
    """Hidden files and folders that were skipped; a folder counts as one."""


def read_manifest(path: Path) -> list[ManifestEntry]:
    """Read the entries of a manifest, in its order, with absolute paths.

    `UsageError` names the file and the line. Image files are not opened here: one that is missing
    or broken becomes a dead letter, not a failed command.
    """
    return list_manifest(path).entries


def list_manifest(path: Path) -> Listing:
    """The same with what is left out of a folder; a manifest's own lines are never left out."""
    if path.is_dir():
        return list_folder(path)
    text = _read_text(path)
    images = _karpathy_images(text)
    entries = _read_json_lines(path, text) if images is None else _read_karpathy(path, images)
    if not entries:
        raise UsageError(
            f"a manifest must name images, got none in {path}; "
            'write one JSON object a line, such as {"image_id": "a", "path": "a.jpg"}'
        )
    return Listing(_require_unique(path, entries))


def list_paths(paths: Sequence[Path]) -> Listing:
    """List folders and single image files, as the command line gives them.

    A file that is named twice, or whose folder is too, is one entry.
    """
    entries: dict[str, ManifestEntry] = {}
    left_out: dict[str, LeftOut] = {}
    hidden = 0
    for path in paths:
        if path.is_dir():
            listing = list_folder(path)
        elif path.exists():
            listing = _list_files([path.parent.resolve() / path.name])
        else:
            raise UsageError(f"{path} does not exist; give image files or folders")
        entries |= {entry.path: entry for entry in listing.entries}
        left_out |= {refused.path: refused for refused in listing.left_out}
        hidden += listing.hidden
    kept = _require_unique(Path("the paths given"), list(entries.values()))
    return Listing(kept, list(left_out.values()), hidden)


def list_folder(folder: Path) -> Listing:
    """List every file beneath a folder, sorted.

    A file's id is its absolute path without the first slash, with the links in the folder's own
    path resolved: files of two folders never share an id, and the same folder gives the same ids
    wherever the command is typed. Hidden files and folders are skipped and counted. Links to
    folders are not followed, for they may be loops; they are told, and so is a folder that cannot
    be read.
    """
    files: list[Path] = []
    left_out: list[LeftOut] = []
    hidden = 0

    def tell(error: OSError) -> None:
        reason = f"the folder cannot be read: {error.strerror}; correct its permissions"
        left_out.append(LeftOut(str(error.filename), reason, "unreadable-folder"))

    for place, folders, names in os.walk(folder.resolve(), onerror=tell):
        hidden += sum(map(_is_hidden, folders)) + sum(map(_is_hidden, names))
        # In place: os.walk goes on with what this list then holds.
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in folders:
            link = Path(place) / name
            # os.walk itself does not go on into it.
            if link.is_symlink():
                left_out.append(LeftOut(str(link), _LINKED, "linked-folder"))
        files += [Path(place) / name for name in sorted(names) if not _is_hidden(name)]
    listing = _list_files(files)
    if not listing.entries and not listing.left_out and not left_out:
        raise UsageError(f"folder {folder} must hold files, got none; give a folder with images")
    return Listing(listing.entries, [*left_out, *listing.left_out], hidden)


def _list_files(files: Iterable[Path]) -> Listing:
    entries: list[ManifestEntry] = []
    left_out: list[LeftOut] = []
    for file in files:
        image_id = _printable_id(file.as_posix().removeprefix("/"))
        if len(image_id) <= MAX_ID_LENGTH:
            entries.append(ManifestEntry(image_id=image_id, path=str(file)))
            continue
        reason = (
            f"its path makes an image id of {len(image_id)} characters, at most {MAX_ID_LENGTH} "
            "are allowed; shorten it, or give it an id in a manifest"
        )
        left_out.append(LeftOut(str(file), reason, "long-id"))
    return Listing(entries, left_out)


def write_manifest(path: Path, entries: Iterable[ManifestEntry]) -> None:
    """Write a manifest as JSON Lines.

    Paths beneath the manifest's folder become relative, so that the folder can be moved.
    """
    home = path.absolute().parent
    home.mkdir(parents=True, exist_ok=True)
    # Written aside, then renamed: no reader meets half a manifest.
    aside = home / f".{path.name}.new"
    with aside.open("w", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(_document(entry, home), ensure_ascii=False) + "\n")
    aside.replace(path)


def _read_text(path: Path) -> str:
    if path.is_char_device() or path.is_block_device():
        raise UsageError(f"a manifest must be a file, got the device {path}; check the path")
    try:
        # -sig: some editors put a byte order mark first, which is not JSON.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"a manifest must be UTF-8 text, got {path} ({error.reason} at byte {error.start}); "
            "give a JSON Lines file"
        ) from error
    except OSError as error:
        raise UsageError(
            f"manifest {path} cannot be read: {error.strerror}; check the path"
        ) from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _document(entry: ManifestEntry, home: Path) -> JsonObject:
    """Return the JSON object of an entry, without absent values."""
    path = Path(entry.path).absolute()
    if path.is_relative_to(home):
        path = path.relative_to(home)
    document: JsonObject = {"image_id": entry.image_id, "path": path.as_posix()}
    if entry.captions:
        document["captions"] = list(entry.captions)
    if entry.test_captions:
        document["test_captions"] = list(entry.test_captions)
    if entry.split is not None:
        document["split"] = entry.split
    if entry.arrived_at is not None:
        document["arrived_at"] = entry.arrived_at.isoformat()
    if entry.metadata:
        document["metadata"] = dict(entry.metadata)
    return document


def _read_json_lines(path: Path, text: str) -> list[ManifestEntry]:
    home = path.absolute().parent
    entries: list[ManifestEntry] = []
    # Not splitlines(): a caption may hold U+2028, which JSON allows unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entries.append(_parse_entry(json.loads(line), home))
        # RecursionError: brackets nested deeply enough exhaust the parser's stack.
        except (ValueError, UsageError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: {error}; correct the line") from error
    return entries


def _parse_entry(document: Any, home: Path) -> ManifestEntry:
    if not isinstance(document, dict):
        raise UsageError(
            "an entry must be an object with image_id and path, "
            f"got a value of type {_kind(document)}"
        )
    image_id = _required_text(document, "image_id")
    path = _required_text(document, "path")
    arrived_at = _optional_text(document, "arrived_at", "2026-01-31T12:00:00+00:00")
    return ManifestEntry(
        image_id=_checked_id(image_id),
        path=os.path.normpath(home / _storable("path", path)),
        captions=_texts("captions", document.get("captions")),
        test_captions=_texts("test_captions", document.get("test_captions")),
        split=_optional_text(document, "split", "train or test"),
        arrived_at=None
        if arrived_at is None
        else storable_time(datetime.fromisoformat(arrived_at)),
        metadata=checked_metadata(document.get("metadata") or {}),
    )


def _required_text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} must be a text that is not empty, got {_shown(value)}")
    return value


def _optional_text(document: Mapping[str, Any], name: str, example: str) -> str | None:
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{name} must be a text such as {example}, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    """A wrong value for a message: all of it could be megabytes."""
    return repr(value)[:_SHOWN_CHARACTERS]


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UsageError(f"{name} must be a list of texts, got {str(value)[:_SHOWN_CHARACTERS]!r}")
    return tuple(_storable(name, text) for text in value)


def _storable(name: str, text: str) -> str:
    """Return a text that can be stored: Postgres refuses NUL, UTF-8 half a surrogate pair."""
    if "\x00" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(
            f"{name} must have no NUL and no half of a surrogate pair, "
            f"got {text[:_SHOWN_CHARACTERS]!r}"
        )
    return text


def _checked_id(image_id: str) -> str:
    if len(image_id) > MAX_ID_LENGTH or any(letter < " " for letter in image_id):
        raise UsageError(
            f"image_id must have at most {MAX_ID_LENGTH} characters and no control characters, "
            f"got {image_id[:_SHOWN_CHARACTERS]!r} ({len(image_id)} characters)"
        )
    return _storable("image_id", image_id)


def _printable_id(name: str) -> str:
    """Turn a file name into an id: bytes that are not UTF-8 and control characters are escaped."""
    escaped = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(letter if letter >= " " else f"\\x{ord(letter):02x}" for letter in escaped)


def _karpathy_images(text: str) -> list[Any] | None:
    """Return the images of Karpathy's document; None when the text is something else."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    images = document.get("images") if isinstance(document, dict) else None
    return images if isinstance(images, list) else None


def _read_karpathy(path: Path, images: Sequence[Any]) -> list[ManifestEntry]:
    home = path.absolute().parent
    entries: list[ManifestEntry] = []
    for number, image in enumerate(images, start=1):
        try:
            entries.append(_karpathy_entry(image, home))
        except UsageError as error:
            raise UsageError(
                f"{path}, image {number}: {error}; each image needs filename and sentences with raw"
            ) from error
    # The document names files only. With the folder elsewhere every image would be a dead letter.
    if not any(os.path.exists(entry.path) for entry in entries):
        raise UsageError(
            f"the images of {path} must be in {home} or {home / 'images'}, "
            f"got none of {len(entries)} there; put the image folder there"
        )
    return entries


def _karpathy_entry(image: Any, home: Path) -> ManifestEntry:
    if not isinstance(image, dict):
        raise UsageError(f"an image must be an object, got a value of type {_kind(image)}")
    name = _checked_id(_required_text(image, "filename"))
    folder = _storable("filepath", _optional_text(image, "filepath", "val2014") or "")
    captions = _karpathy_captions(image.get("sentences"))
    split = _optional_text(image, "split", "train or test")
    if split == "restval":
        # COCO validation images that everyone trains on.
        split = "train"
    entry = ManifestEntry(
        image_id=name, path=_karpathy_path(home, folder, name), captions=captions, split=split
    )
    if split == "test":
        return replace(entry, captions=(), test_captions=captions)
    return entry


def _karpathy_captions(sentences: Any) -> tuple[str, ...]:
    if sentences is None:
        return ()
    if not isinstance(sentences, list):
        raise UsageError(f"sentences must be a list, got a value of type {_kind(sentences)}")
    captions = []
    for sentence in sentences:
        if not isinstance(sentence, dict):
            raise UsageError(f"a sentence must be an object, got a value of type {_kind(sentence)}")
        raw = sentence.get("raw")
        if not isinstance(raw, str):
            raise UsageError(f"raw must be a text, got {_shown(raw)}")
        captions.append(raw.strip())
    return _texts("sentences", captions)


def _kind(value: Any) -> str:
    return type(value).__name__


def _karpathy_path(home: Path, folder: str, name: str) -> str:
    """Return where an image is; the first of the usual places when it is in none of them."""
    images = home / "images"
    places = (home / folder / name, images / folder / name, images / name, home / name)
    for place in places:
        # Not `Path.exists`, which raises where a name is longer than the disk allows.
        if os.path.exists(place):
            return str(place)
    return str(places[0])


def _require_unique(path: Path, entries: list[ManifestEntry]) -> list[ManifestEntry]:
    """Return the entries; `UsageError` when two of them have the same id."""
    numbers: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        first = numbers.setdefault(entry.image_id, number)
        if first != number:
            raise UsageError(
                f"{path}: image ids must be unique, got {entry.image_id!r} "
                f"in both entry {first} and entry {number}; rename one"
            )
    return entries
