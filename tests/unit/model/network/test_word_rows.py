"""Words of an encoder: rows of near words lie near each other, and the most frequent stand out."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from model.network.backbone import fresh_backbone
from model.network.tokenizer import IDENTIFIER, token_id, train_tokenizer
from model.network.word_rows import WordTable, begin_with_words, token_texts
from schemas.records import FloatArray
from tests.unit.model.conftest import SMALL

CAPTIONS = ("a red church", "a red house", "a red dog", "a church")
MEANINGS = {"church": 0, "house": 0, "temple": 0, "dog": 1, "cat": 1}


class Table:
    """Two meanings with some noise; it knows no other word."""

    def known_words(self) -> list[str]:
        return list(MEANINGS)

    def word_vectors(self, texts: Sequence[str]) -> FloatArray:
        rng = np.random.default_rng(0)
        rows = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            if text.strip() in MEANINGS:
                rows[row] = 0.3 * rng.standard_normal(64)
                rows[row, MEANINGS[text.strip()]] += 10.0
        return rows


def test_a_fresh_table_has_the_encoders_meanings_and_the_captions_frequencies() -> None:
    words = Table()
    assert isinstance(words, WordTable)
    tokenizer = train_tokenizer([*CAPTIONS * 2, *words.known_words() * 2], 400)
    backbone = fresh_backbone(SMALL, tokenizer, 0)
    before = backbone.lm_head.weight.detach().clone()
    begin_with_words(backbone, tokenizer, words, CAPTIONS)
    # The output layer is the same table.
    table = backbone.lm_head.weight.detach()

    def row(word: str) -> torch.Tensor:
        (token,) = tokenizer(word, add_special_tokens=False)["input_ids"]
        return table[token]

    def cosine(one: str, other: str) -> float:
        return float(torch.cosine_similarity(row(one)[:-1], row(other)[:-1], dim=0))

    # No caption has a temple or a cat.
    assert cosine("church", "temple") > 0.8 > 0.0 > cosine("temple", "cat")
    assert cosine("dog", "cat") > 0.8
    frequencies = [float(row(word)[-1]) for word in ("red", "church", "dog", "temple")]
    assert frequencies == sorted(frequencies, reverse=True)
    assert frequencies[-1] == pytest.approx(float(row("cat")[-1]))
    # Control tokens keep what was drawn, at the size of the others.
    mark = token_id(tokenizer, IDENTIFIER)
    assert torch.cosine_similarity(table[mark, :-1], before[mark, :-1], dim=0) > 0.999
    assert 0.05 < float(table[:, :-1].std()) < 0.2


def test_control_tokens_and_parts_of_letters_spell_no_word() -> None:
    tokenizer = train_tokenizer(["église rouge"] * 4, 400)
    texts = token_texts(tokenizer)
    assert len(texts) == len(tokenizer)
    assert texts[token_id(tokenizer, IDENTIFIER)] == ""
    assert " rouge" in texts
    # Byte-level tokens: two of them spell an é.
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)
