"""Word rows: the word table of a fresh model, begun with that of an encoder's text side.

A few thousand captions cannot teach a model of random weights what words mean: it learns which of
them stood behind which identifier, and a word that no caption had is as strange to it as any other.
A published text tower has a table of words that lie as their meanings do (Mikolov et al. 2013,
arXiv 1301.3781). Rows that begin with it, and stay so, make a caption likely whose words are near
to those that were learnt (docs/experiments/small.md).

Letters in shapes: V tokens, H hidden width, W width of the encoder's word table.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch

from model.network.tokenizer import END
from schemas.records import FloatArray, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration

# Standard deviation of a row's numbers. The output layer is the same table, and the states that it
# is multiplied with have a length of sqrt(H): smaller rows, which do not grow, could not make one
# word much likelier than another.
_SPREAD = 0.1

# How much more one more standard deviation of a word's log-frequency changes a row than one of a
# direction of meaning does.
_FREQUENCY_WEIGHT = 4.0

# What does not vary is not divided by nothing.
_LEAST_DEVIATION = 1e-6

# Times that a word without any caption is counted.
_UNSEEN = 0.1


@runtime_checkable
class WordTable(Protocol):
    """An encoder whose text side has a table of words to begin with."""

    def known_words(self) -> list[str]:
        """Words that have a row of their own, the most frequent ones first."""
        ...

    def word_vectors(self, texts: Sequence[str]) -> FloatArray:
        """(texts, W) float32 mean of the rows of each text's tokens, before any context.

        A text that begins with a space begins a word, another one goes on with it. Zero where the
        table knows nothing of it.
        """
        ...


def begin_with_words(
    backbone: "Qwen2_5_VLForConditionalGeneration",
    tokenizer: "PreTrainedTokenizerBase",
    words: WordTable,
    captions: Iterable[str],
) -> None:
    """Fill the word table (V, H) of a fresh backbone, in place; its output layer is the same table.

    The last number of a row is how frequent the token is in the captions, the others are principal
    components of the encoder's rows. Tokens that the encoder has no word for keep random rows of
    the same size.
    """
    table: Any = backbone.get_input_embeddings()
    vectors = words.word_vectors(token_texts(tokenizer))
    known = np.abs(vectors).sum(1) > 0
    random = table.weight.detach().cpu().numpy()
    rows = random / random.std() * _SPREAD
    if known.any():
        meanings = _components(vectors[known], rows.shape[1] - 1)
        rows[known, :-1] = 0.0
        rows[known, : meanings.shape[1]] = meanings
    logs = np.log(_UNSEEN + _counts(tokenizer, captions))
    deviation = max(float(logs.std()), _LEAST_DEVIATION)
    rows[:, -1] = (logs - logs.mean()) / deviation * _SPREAD * _FREQUENCY_WEIGHT
    with torch.no_grad():
        table.weight.copy_(torch.from_numpy(rows))


def token_texts(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What each of the V tokens spells; empty for control tokens and parts of letters."""
    control = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    texts: list[str] = []
    for token, name in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        text = "" if name in control else str(tokenizer.decode([token]))
        # A token of some bytes of a letter is decoded as a replacement character.
        texts.append("" if "\N{REPLACEMENT CHARACTER}" in text else text)
    return texts


def _components(vectors: FloatArray, width: int) -> FloatArray:
    """First principal components of (n, W) vectors, of the rows' spread together.

    (n, width), or fewer columns where n or W is less.
    """
    centred = vectors - vectors.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    components: FloatArray = centred @ directions[:width].T
    return components / max(float(components.std()), _LEAST_DEVIATION) * _SPREAD


def _counts(tokenizer: "PreTrainedTokenizerBase", captions: Iterable[str]) -> IntArray:
    """(V,) how often each token is in the captions, of which each has an end."""
    texts = list(captions)
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    counted = Counter(chain.from_iterable(encoded))
    counts = np.zeros(len(tokenizer), np.int64)
    counts[list(counted)] = list(counted.values())
    counts[tokenizer.convert_tokens_to_ids(END)] = len(texts)
    return counts
