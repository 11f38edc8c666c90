"""The search over identifiers of any length, beside the full model."""

import pytest
import torch

from model.decoding.decoder import Decoder
from model.decoding.sequence_search import generate, search_sequences
from model.network.parts import ModelParts
from model.network.prompts import TrainingExample
from model.network.symbols import add_symbols
from model.retrieval.sequence_trie import SequenceTrie

TEXTS = ("a small red circle", "two blue squares on navy")
ROWS = ((3,), (1, 4), (1, 5, 0), (1, 5, 2), (2, 4, 4, 4), (2, 0))


@pytest.fixture
def decoder(parts: ModelParts) -> Decoder:
    torch.manual_seed(1)
    add_symbols(parts.sigma, 6)
    return Decoder(parts.sigma)


def filled(decoder: Decoder) -> tuple[SequenceTrie, list[list[int]]]:
    tokens = decoder.sigma.tokenizer
    rows = [
        [int(tokens.convert_tokens_to_ids(f"<symbol_{symbol}>")) for symbol in row] for row in ROWS
    ]
    trie = SequenceTrie()
    for image, row in enumerate(rows):
        trie.add(row, image)
    trie.add(rows[0], 99)
    return trie, rows


def log_probability(decoder: Decoder, text: str, row: list[int]) -> float:
    prompt = decoder.sigma.prompts.query_prompt(text)
    example = TrainingExample((*prompt, *row), len(prompt))
    return -float(decoder.sigma.continuation_losses([example])[0]) * len(row)


def test_with_beams_enough_every_identifier_has_the_full_models_probability(
    decoder: Decoder,
) -> None:
    trie, rows = filled(decoder)
    answers = search_sequences(decoder, decoder.read_texts(TEXTS), trie, beams=10)
    assert answers.passes == 4
    for text, found in zip(TEXTS, answers.found, strict=True):
        expected = {image: log_probability(decoder, text, row) for image, row in enumerate(rows)}
        order = sorted(expected, key=lambda image: -expected[image])
        assert [each.images[0] for each in found] == order
        for each in found:
            assert each.score == pytest.approx(expected[each.images[0]], abs=1e-3)
        assert (0, 99) in [each.images for each in found], "images of one row keep their order"


def test_few_beams_return_as_many_identifiers_and_stop_when_no_other_can_be_better(
    decoder: Decoder,
) -> None:
    trie, _ = filled(decoder)
    answers = search_sequences(decoder, decoder.read_texts(TEXTS), trie, beams=2)
    assert [len(found) for found in answers.found] == [2, 2]
    for found in answers.found:
        assert found[0].score >= found[1].score
    nothing = search_sequences(decoder, decoder.read_texts(TEXTS), SequenceTrie(), beams=2)
    assert nothing.found == [[], []]


def test_what_is_generated_without_a_trie_is_the_likeliest_token_each_time(
    decoder: Decoder,
) -> None:
    sigma = decoder.sigma
    (row, *_) = generate(decoder, decoder.read_texts(TEXTS), sigma.prompts.end, 5)
    prompt = sigma.prompts.query_prompt(TEXTS[0])
    inputs = sigma.embed([[*prompt, *row]], None)
    with torch.inference_mode():
        logits = sigma.backbone.lm_head(sigma._hidden_states(inputs))[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == row


def test_a_row_names_an_image_when_it_begins_with_an_identifier() -> None:
    trie = SequenceTrie()
    trie.add([5, 6], 0)
    assert trie.depth == 2
    assert trie.names_an_image([5, 6, 7])
    assert not trie.names_an_image([5])
    assert not trie.names_an_image([6, 5])
