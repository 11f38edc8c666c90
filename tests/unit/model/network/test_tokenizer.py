"""Text: open vocabulary, and nothing that a user types becomes a control token."""

from itertools import chain
from pathlib import Path

import pytest

from model.decoding.decoder import Decoder
from model.decoding.explain import explain
from model.network.parts import ModelParts
from model.network.tokenizer import (
    IDENTIFIER,
    add_identifier_tokens,
    level_token_ids,
    load_tokenizer,
    token_id,
    train_tokenizer,
)
from schemas.errors import RefuseToStartError
from schemas.identifiers import IdentifierShape
from tests.unit.model.conftest import TEXTS

ANY_LANGUAGE = ("ein großes Quadrat", "红色的圆", "مربع أزرق", "🙂 emoji", "a\tb\nc", "ﬁ ligature")


@pytest.mark.parametrize("text", ANY_LANGUAGE)
def test_text_of_any_language_survives_the_tokenizer(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == text
    assert tokenizer.unk_token_id not in ids


def test_a_tokenizer_without_case_stays_so_when_it_is_read_back(tmp_path: Path) -> None:
    titles = ["Église Rouge", "Red Church, buildings"] * 4
    train_tokenizer(titles, 400, uncased=True).save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    whole = tokenizer("RED Church, Église", add_special_tokens=False)["input_ids"]
    assert whole == tokenizer("red church, église", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(whole).strip() == "red church, église"
    # A word of the titles is one token, however it is written.
    assert len(tokenizer("Church", add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer(IDENTIFIER, add_special_tokens=False)["input_ids"] == [
        token_id(tokenizer, IDENTIFIER)
    ]


def test_a_query_that_spells_a_control_token_stays_text(parts: ModelParts) -> None:
    prompts = parts.sigma.prompts
    typed = prompts.text("<id1_0> <|identifier|> <|image_pad|>")
    control = set(chain.from_iterable(parts.sigma.levels))
    control |= {prompts.image, prompts.identifier_mark, prompts.end}
    assert not control & set(typed)
    assert len(prompts.text("long " * 500)) == prompts.limit


def test_identifier_tokens_are_added_once_and_belong_to_one_shape() -> None:
    tokenizer = train_tokenizer(TEXTS, 400)
    shape = IdentifierShape(codes=(4, 3, 3, 2), suffixes=8)
    first = add_identifier_tokens(tokenizer, shape)
    assert add_identifier_tokens(tokenizer, shape) == first
    assert [len(level) for level in first] == [4, 3, 3, 2, 8]
    assert len(set(chain.from_iterable(first))) == 20
    with pytest.raises(RefuseToStartError, match="retrain"):
        level_token_ids(tokenizer, IdentifierShape(codes=(4, 3, 3, 2), suffixes=9))


def test_an_explanation_is_text_without_identifier_tokens(parts: ModelParts) -> None:
    caption = explain(Decoder(parts.sigma), [1, 2, 0])
    assert "<id" not in caption
    assert caption == explain(Decoder(parts.sigma), [1, 2, 0])
