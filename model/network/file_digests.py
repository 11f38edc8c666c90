"""File digests: a folder of weights knows the content of its files, and damage has a name.

A file whose bytes were flipped, by a disk or a copy, often still loads: its tensors have the right
names and shapes, and the model answers nonsense.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog

from schemas.errors import RefuseToStartError

# Lists the digests of all other files of its folder.
DIGESTS = "digests.json"

# Of the digest, so that a later version can use another one.
_ALGORITHM = "sha256"

# What to do about damage.
_HINT = "restore the folder from a copy or train again"

# Nanoseconds after its last change within which a file may change again unseen: clocks of file
# systems tick slowly.
_UNSETTLED_NS = 1_000_000_000

# Digests that this process has computed, by what changes when a file does. Generations share the
# files of an encoder by links, and gigabytes are read once then.
_computed: dict[tuple[int, int, int, int], str] = {}

log = structlog.get_logger()


def write_digests(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the digests of a folder's files, which are complete: all of them, or those named."""
    chosen = file_names(folder) if names is None else sorted(names)
    record_digests(folder, digests_of(folder, chosen))


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The digests of some of a folder's files, by name."""
    return {name: digest_of(folder / name) for name in names}


def record_digests(folder: Path, digests: Mapping[str, str]) -> None:
    """Write the digests of a folder's files, which were computed before."""
    text = json.dumps({"algorithm": _ALGORITHM, "files": dict(sorted(digests.items()))}, indent=2)
    (folder / DIGESTS).write_text(text + "\n", encoding="utf-8")


def check_digests(
    folder: Path, share: Callable[[list[str]], list[str]] = list, hint: str = _HINT
) -> None:
    """Compare a folder's files with their digests; `RefuseToStartError` names one that differs.

    A `share` of the names is compared, and `hint` says what to do about damage. A folder of an
    older version has no digests, which is only logged.
    """
    file = folder / DIGESTS
    if not file.exists():
        log.warning("weights without digests, damage would not be noticed", folder=str(folder))
        return
    recorded = recorded_digests(folder)
    for name in share(list(recorded)):
        if not (folder / name).is_file():
            raise RefuseToStartError(f"{folder / name} is missing; {hint}")
        if _known_digest(folder / name) != recorded[name]:
            raise RefuseToStartError(
                f"{folder / name} cannot be read as it was written: it was damaged or exchanged; "
                f"{hint}"
            )


def file_names(folder: Path) -> list[str]:
    """Name all files below a folder but the digests, relative to it, sorted."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != DIGESTS:
            names.append(name)
    return sorted(names)


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, _ALGORITHM).hexdigest()


def _known_digest(file: Path) -> str:
    """`digest_of`, without reading a file again that has not changed since."""
    found = file.stat()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    if key not in _computed:
        digest = digest_of(file)
        if time.time_ns() - found.st_mtime_ns < _UNSETTLED_NS:
            return digest
        _computed[key] = digest
    return _computed[key]


def recorded_digests(folder: Path) -> dict[str, str]:
    """Return what a folder's files were when they were written; nothing where that is unknown."""
    file = folder / DIGESTS
    if not file.exists():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["algorithm"] != _ALGORITHM:
            raise ValueError(f"the algorithm is {document['algorithm']}")
        return {str(name): str(digest) for name, digest in document["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefuseToStartError(f"{file} cannot be read ({error}); {_HINT}") from error
