"""The photo sample: which pictures of a folder are learnt from."""

from collections.abc import Sequence

import numpy as np

from schemas.records import ManifestEntry

# Pictures that a training learns from at most: more make it longer and hardly better. The others
# come by the stream.
SAMPLE = 5000

# Which pictures are sampled does not depend on the run.
_SEED = 0


def sampled(entries: Sequence[ManifestEntry], limit: int) -> list[ManifestEntry]:
    """At most `limit` of the entries, in their order: a seeded sample of more."""
    if len(entries) <= limit:
        return list(entries)
    chosen = np.random.default_rng(_SEED).choice(len(entries), limit, replace=False)
    return [entries[place] for place in np.sort(chosen).tolist()]
