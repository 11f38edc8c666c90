"""Query cursors: the rest of a ranked answer, which the client keeps and brings back.

A cursor carries the keys and scores of the images that are still to come, sealed. So nothing is
kept here, any worker can go on, and whatever arrives, is deleted or goes live meanwhile, no image
comes twice and all come from one generation. A key stands for one version of one image: a deleted
or replaced one has gone from the database and is left out.
"""

import struct
import time
from dataclasses import dataclass, replace

import numpy as np

from schemas.errors import UsageError
from workers.api.answers import GONE
from workers.api.json_body import RequestRefusedError
from workers.api.signatures import Signer
from workers.query.searcher import RankedRest

# Seconds for which a cursor is good.
LIFETIME_S = 900

# With the version of the layout below.
_PURPOSE = "cursor 2"

# Generation, end of its time, rank of the next image, candidates, images, and whether cosines are
# shown, a text was asked, cosines are there.
_HEAD = struct.Struct("<IIHIH???")

_KEYS = np.dtype("<i8")
_FLOATS = np.dtype("<f4")


@dataclass(frozen=True, slots=True, eq=False)
class QueryCursor:
    """Where an answer goes on."""

    generation: int
    next_rank: int
    candidates: int
    explained: bool
    is_text: bool
    """Whether a text was asked; relevances of pictures are not calibrated."""
    rest: RankedRest

    def after(self, shown: int, passed: int) -> "QueryCursor | None":
        """The cursor behind a page of `shown` images, for which `passed` were looked at."""
        rest = self.rest.behind(passed)
        if not len(rest.image_keys):
            return None
        return replace(self, next_rank=self.next_rank + shown, rest=rest)


def seal(signer: Signer, cursor: QueryCursor) -> str:
    """The text of a cursor."""
    rest = cursor.rest
    head = _HEAD.pack(
        cursor.generation,
        int(time.time()) + LIFETIME_S,
        cursor.next_rank,
        cursor.candidates,
        len(rest.image_keys),
        cursor.explained,
        cursor.is_text,
        rest.cosines is not None,
    )
    cosines = b"" if rest.cosines is None else rest.cosines.astype(_FLOATS).tobytes()
    keys = rest.image_keys.astype(_KEYS).tobytes()
    return signer.sealed(_PURPOSE, head + keys + rest.scores.astype(_FLOATS).tobytes() + cosines)


def unseal(signer: Signer, text: str) -> QueryCursor:
    """Read a cursor; `UsageError` for one of others, `RequestRefusedError` when it has expired."""
    payload = signer.opened(_PURPOSE, text)
    if payload is None:
        raise UsageError(
            "the cursor must be one that an answer of this service gave, got another; ask anew"
        )
    head = _HEAD.unpack_from(payload)
    generation, until, next_rank, candidates, count, explained, is_text, compared = head
    if until <= time.time():
        raise expired("the cursor's time is over")
    keys_end = _HEAD.size + count * _KEYS.itemsize
    scores_end = keys_end + count * _FLOATS.itemsize
    keys = np.frombuffer(payload, _KEYS, count, _HEAD.size).astype(np.int64)
    scores = np.frombuffer(payload, _FLOATS, count, keys_end)
    cosines = np.frombuffer(payload, _FLOATS, count, scores_end) if compared else None
    rest = RankedRest(keys, scores, cosines)
    return QueryCursor(generation, next_rank, candidates, explained, is_text, rest)


def expired(why: str) -> RequestRefusedError:
    """The refusal of a cursor that is good no more."""
    return RequestRefusedError(f"{why}; ask anew for a fresh one", GONE)
