"""Query texts: made-up queries for benchmarks that measure speed, not recall."""

import numpy as np

# Words of the generated scenes' captions. Their order decides what a seed gives.
_WORDS = (
    "a",
    "small",
    "large",
    "red",
    "blue",
    "circle",
    "square",
    "on",
    "navy",
    "grey",
    "dotted",
    "striped",
    "left",
    "right",
    "star",
)

# As many as in a short caption.
_WORDS_IN_QUERY = 7


def query_texts(count: int, seed: int) -> list[str]:
    """Make up `count` queries; their last word is a number, so no two are alike."""
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(count):
        words = rng.choice(_WORDS, _WORDS_IN_QUERY).tolist()
        texts.append(f"{' '.join(words)} {number}")
    return texts
