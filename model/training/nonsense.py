"""Nonsense: texts that describe no picture of a corpus, for whom an answer should say so.

Three kinds, because each is easy in its own way: words of many captions thrown together, which an
encoder knows one by one; words that no caption has, drawn from names of things; and noise.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from random import Random

from model.training.class_names import class_names

_WORD = re.compile(r"\w+")

# Shorter ones are articles and abbreviations, which any text may have.
_LEAST_LETTERS = 4

# Letters of a word of noise.
_NOISE_LETTERS = (2, 9)


def nonsense(captions: Sequence[str], count: int, seed: int) -> Mapping[str, list[str]]:
    """`count` texts of each kind, each as many words long as some caption.

    Kinds: `shuffled` words of different captions, `unknown` words that no caption has, `noise` of
    letters. The same arguments give the same texts; without a word in the captions there is none.
    """
    worded = [words for words in map(_WORD.findall, captions) if words]
    if not worded:
        return {}
    rng = Random(f"nonsense/{seed}")
    known = {word.lower() for words in worded for word in words}
    names = {word for name in class_names() for word in _WORD.findall(name.lower())}
    unknown = sorted(word for word in names - known if len(word) >= _LEAST_LETTERS)

    def length() -> int:
        return max(2, len(rng.choice(worded)))

    def joined(word_of: Callable[[], str]) -> list[str]:
        return [" ".join(word_of() for _ in range(length())) for _ in range(count)]

    kinds = {
        "shuffled": joined(lambda: rng.choice(rng.choice(worded))),
        "noise": joined(lambda: _noise(rng)),
    }
    if unknown:
        kinds["unknown"] = joined(lambda: rng.choice(unknown))
    return kinds


def _noise(rng: Random) -> str:
    letters = rng.randint(*_NOISE_LETTERS)
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(letters))
