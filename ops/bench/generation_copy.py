"""Generation copies: candidates that differ from their source in the suffixes alone.

So an answer's identifiers tell which generation gave them.
"""

from collections.abc import Callable, Sequence

import numpy as np

from schemas.records import IntArray
from workers.repository import generations
from workers.repository.bulk_load import InitialLoad, bulk_append
from workers.repository.connection import Connection
from workers.repository.follower import TrieFollower
from workers.repository.generations import Generation


def copy_generation(
    connect: Callable[[str], Connection],
    conn: Connection,
    source: Generation,
    order: Sequence[int] | None = None,
) -> int:
    """Create a generation, still building, with the postings of `source` under other suffixes.

    Its checkpoint is the same folder. With an `order`, (N,) rows of the images by ascending key,
    each image gets the postings of the image at its row there: a codebook gone wrong.
    """
    number = generations.create_generation(
        conn,
        source.shape,
        codebook_version=source.codebook_version,
        checkpoint_path=source.checkpoint_path,
    )
    # A follower needs its own connection.
    with connect("copy") as follower_conn:
        content = TrieFollower.open(follower_conn, source.id).load()
    postings = content.postings
    keys = content.embeddings.image_keys
    load = InitialLoad(
        leaves=postings.leaves,
        posted_keys=_reordered(postings.image_keys, keys, order),
        weights=postings.weights,
        suffixes=_shifted(postings.suffixes, number, source.shape.suffixes),
        image_keys=keys,
        embeddings=content.embeddings.embeddings,
        confidences=content.embeddings.confidences,
    )
    bulk_append(conn, number, load)
    return number


def _reordered(posted_keys: IntArray, keys: IntArray, order: Sequence[int] | None) -> IntArray:
    """(P,) posted keys, each replaced by the one that the order puts in its place."""
    if order is None:
        return posted_keys
    rows = np.searchsorted(keys, posted_keys)
    return keys[np.asarray(order)][rows]


def _shifted(suffixes: IntArray, shift: int, count: int) -> IntArray:
    """(P,) suffixes, those of primaries moved round by `shift`; they stay unique in their leaf."""
    # One that wraps around leaves its leaf no free suffix above the highest. A benchmark has too
    # few generations and images for that.
    return np.where(suffixes >= 0, (suffixes + shift) % count, -1)
