"""Kept encoders: those whose files a checkpoint holds, so that a generation starts on its own."""

import shutil
import threading
from pathlib import Path
from typing import Protocol, runtime_checkable
from weakref import WeakValueDictionary

from model.network.encoder import Encoder
from model.network.encoders.pretrained import PretrainedEncoder
from model.network.encoders.reader import read_encoder
from model.network.file_digests import DIGESTS, check_digests, digest_of
from schemas.errors import RefuseToStartError

# Name of a folder that is not complete: it is thrown away.
_UNFINISHED = ".unfinished"

# The kept encoders of this process by the digest of their files' digests and their width:
# generations with the same encoder share one in memory, whatever their number. The last one that
# goes takes it along.
_loaded: WeakValueDictionary[tuple[str, int | None], PretrainedEncoder] = WeakValueDictionary()

# Generations are loaded by several threads, and the second one must wait for the first one's.
_loading = threading.Lock()


@runtime_checkable
class KeptEncoder(Encoder, Protocol):
    """An encoder that can write all it is read from into a folder."""

    side_px: int
    """Pixels of a side of the square that it reads."""

    @property
    def source(self) -> str:
        """What it was asked for with: a folder, or a hub name with its revision."""
        ...

    def keep(self, folder: Path) -> None:
        """Write a new folder with the encoder and the digests of its files."""
        ...


def keep_encoder(encoder: KeptEncoder, folder: Path) -> None:
    """Write an encoder into a folder, whole or not at all, unless the folder is there already."""
    if folder.is_dir():
        return
    unfinished = folder.with_name(f"{_UNFINISHED}-{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    encoder.keep(unfinished)
    unfinished.replace(folder)


def read_kept(folder: Path, source: str, width: int | None = None) -> PretrainedEncoder:
    """Read the encoder that a checkpoint keeps in a folder, after a look at its files' digests.

    One that this process has loaded already is that one. `width`: of the vectors, where the
    encoder's may be cut. `RefuseToStartError` when it is missing or damaged.
    """
    if not (folder / DIGESTS).is_file():
        raise RefuseToStartError(
            f"{folder} holds no encoder, which its checkpoint needs; restore the folder from a "
            "copy or train again"
        )
    key = (digest_of(folder / DIGESTS), width)
    with _loading:
        check_digests(folder)
        known = _loaded.get(key)
        if known is None:
            known = read_encoder(folder, source, width)
            _loaded[key] = known
    return known
