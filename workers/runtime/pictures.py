"""Pictures: normalised images of the store as pixel arrays."""

import io
from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
from PIL import Image

from schemas.errors import RejectInputError
from schemas.records import ByteArray
from stream.images.decode_protocol import LONGEST_SIDE
from stream.images.store import ImageStore

# Pixels of the longer side that a stored picture keeps at most, unless more are asked for: a model
# without a bound of its own may read 3,584 squared, which makes a store of 12 MB a picture.
LARGEST_SIDE = 2048


def picture_px(asked: int | None, encoder_px: int) -> int:
    """Pixels that the longer side of a stored picture keeps: what was asked for, or enough.

    `encoder_px` is the side of the square that the models and encoders read at most, 0 where none
    is known. A photo is four by three as a rule, and the shorter side fills the square.
    """
    if asked is not None:
        return asked
    return min(LARGEST_SIDE, max(LONGEST_SIDE, -(-encoder_px * 4 // 3)))


def read_picture(store: ImageStore, uri: str) -> ByteArray:
    """Read a normalised image as (H, W, 3) uint8.

    `RejectInputError` when the store lost or damaged it.
    """
    data = store.get(uri)
    try:
        return decoded_picture(data)
    except (OSError, SyntaxError, ValueError) as error:
        raise RejectInputError(
            "damaged-store",
            f"the stored image {uri} cannot be read ({error}); ingest the image again",
        ) from error


def decoded_picture(png: bytes) -> ByteArray:
    """A picture that this project made, as (H, W, 3) uint8."""
    # The store holds PNG only: no other decoder is given its bytes.
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


class StoredPictures(Sequence[ByteArray]):
    """Images of the store, read on access, because a training set may be larger than memory.

    With `prepare` (the fixed square of the `tiny` profile) each image is shrunk once and kept.
    """

    def __init__(
        self,
        store: ImageStore,
        uris: Sequence[str],
        prepare: Callable[[ByteArray], ByteArray] | None = None,
    ) -> None:
        self._store = store
        self._uris = uris
        self._prepare = prepare
        self._prepared: dict[int, ByteArray] = {}

    def __len__(self) -> int:
        return len(self._uris)

    def rows(self, indices: Sequence[int]) -> "StoredPictures":
        """Select some of the images, in that order."""
        uris = [self._uris[index] for index in indices]
        return StoredPictures(self._store, uris, self._prepare)

    def as_stored(self) -> "StoredPictures":
        """The same images, not prepared."""
        return self if self._prepare is None else StoredPictures(self._store, self._uris)

    @overload
    def __getitem__(self, index: int) -> ByteArray: ...

    @overload
    def __getitem__(self, index: slice) -> list[ByteArray]: ...

    def __getitem__(self, index: int | slice) -> ByteArray | list[ByteArray]:
        if isinstance(index, slice):
            return [self._read(position) for position in range(*index.indices(len(self)))]
        return self._read(index if index >= 0 else index + len(self))

    def _read(self, index: int) -> ByteArray:
        if index in self._prepared:
            return self._prepared[index]
        picture = read_picture(self._store, self._uris[index])
        if self._prepare is None:
            return picture
        self._prepared[index] = self._prepare(picture)
        return self._prepared[index]
