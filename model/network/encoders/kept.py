"""Kept encoders: those whose files a checkpoint holds, so that a generation starts on its own."""

import shutil
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

# The kept encoders of this process by the digest of their files' digests: generations with the same
# encoder share one in memory, whatever their number.
_loaded: WeakValueDictionary[str, PretrainedEncoder] = WeakValueDictionary()


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


def read_kept(folder: Path, source: str) -> PretrainedEncoder:
    """Read the encoder that a checkpoint keeps in a folder, after a look at its files' digests.

    `RefuseToStartError` when it is missing or damaged.
    """
    if not (folder / DIGESTS).is_file():
        raise RefuseToStartError(
            f"{folder} holds no encoder, which its checkpoint needs; restore the folder from a "
            "copy or train again"
        )
    check_digests(folder)
    key = digest_of(folder / DIGESTS)
    known = _loaded.get(key)
    if known is None:
        known = read_encoder(folder, source)
        _loaded[key] = known
    return known
