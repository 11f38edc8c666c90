"""Identifiers that carry language: measured by exchanging them, and learnt until it shows."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from model.decoding.decoder import Decoder
from model.decoding.explain import explain
from model.network.parts import ModelParts, parts_from_base
from model.network.profiles import Stage
from model.network.prompts import COMPREHEND, TrainingExample
from model.network.sigma import SigmaModel
from model.training.comprehension import (
    caption_losses,
    compare_identifiers,
    compare_similarities,
    exchanged_rows,
    predicted_similarities,
)
from model.training.stages import run_stage
from model.training.training_set import (
    MismatchedPair,
    TrainingSet,
    held_out_rows,
    stage_examples,
)
from tests.unit.model.conftest import (
    TEXTS,
    forget_identifiers,
    pictures,
    small_base,
    small_profile,
)

# Images of the tests: each of four texts stands for a quarter of them.
COUNT = 16


def identifiers_that_mean_something() -> np.ndarray:
    """(COUNT, 5): id1 tells which text describes the image, the rest is arbitrary."""
    rng = np.random.default_rng(0)
    return np.column_stack([np.arange(COUNT) % 4, *rng.integers(0, 2, (4, COUNT))])


def training_set() -> TrainingSet:
    return TrainingSet(
        images=pictures(COUNT),
        identifiers=identifiers_that_mean_something(),
        captions=[(TEXTS[row % 4],) for row in range(COUNT)],
    )


def test_a_fluent_model_that_ignores_identifiers_wins_half_of_the_pairs(
    parts: ModelParts,
) -> None:
    sigma = parts.sigma
    forget_identifiers(sigma)
    data = training_set()
    texts = [captions[0] for captions in data.captions]
    figures = compare_identifiers(sigma, data.identifiers, texts, data.captions, 0)
    assert figures.wins == 0.5
    assert figures.loss == pytest.approx(figures.shuffled_loss)
    assert figures.cider == pytest.approx(figures.shuffled_cider)
    assert figures.distinct == 1


def test_a_trained_model_says_what_the_own_identifier_stands_for(tmp_path: Path) -> None:
    parts = parts_from_base(small_base(), small_profile())
    data = training_set()
    stage = Stage("comprehend", epochs=60, learning_rate=5e-3, batch=8)
    run_stage(parts.sigma, data, stage, tmp_path / "stage", checkpoints=0)
    texts = [captions[0] for captions in data.captions]
    figures = compare_identifiers(parts.sigma, data.identifiers, texts, data.captions, 0)
    assert figures.wins > 0.75
    assert figures.cider > 2 * figures.shuffled_cider
    assert figures.distinct == 4


def test_the_soft_label_head_tells_own_from_mismatched_pairs_once_it_has_seen_some(
    parts: ModelParts, tmp_path: Path
) -> None:
    data = training_set()
    labels = [np.array([0.9], np.float32)] * COUNT
    mismatched = [MismatchedPair(row, ((row + 1) % COUNT, 0), 0.1) for row in range(COUNT)]
    stage = Stage("align", epochs=60, learning_rate=5e-3, batch=8, soft_label_weight=5.0)
    whole = replace(data, soft_labels=labels, mismatched=mismatched)
    run_stage(parts.sigma, whole, stage, tmp_path / "stage", checkpoints=0)
    texts = [captions[0] for captions in data.captions]
    own = predicted_similarities(parts.sigma, data.identifiers, texts)
    wrong = predicted_similarities(parts.sigma, data.identifiers, [*texts[1:], texts[0]])
    assert (own > wrong).mean() > 0.9
    # Some exchanged identifiers have the own text too: images of one id1 are described alike.
    similarities = compare_similarities(parts.sigma, data.identifiers, texts, 0)
    assert similarities.own > similarities.mismatched + 0.2


def test_mismatched_pairs_teach_the_head_and_no_token(parts: ModelParts) -> None:
    data = replace(
        training_set(),
        soft_labels=[np.array([0.9], np.float32)] * COUNT,
        mismatched=[MismatchedPair(3, (5, 0), 0.2)],
    )
    stage = parts.sigma.profile.stage("align")
    examples = stage_examples(parts.sigma, data, stage, 0)
    assert len(examples) == COUNT + 1
    pair = examples[COUNT]
    assert pair.soft_label == 0.2
    with torch.inference_mode():
        losses = parts.sigma.losses([pair], None)
    assert losses.counts.tolist() == [0, 1, 0]
    assert float(losses.generation) == 0
    assert float(losses.similarity) > 0


def test_held_out_identifiers_are_never_shown_before_a_caption(parts: ModelParts) -> None:
    count = 600
    held_out = held_out_rows(count, 0.05, 7)
    assert len(held_out) == 30
    assert len(held_out_rows(100, 0.05, 7)) == len(held_out_rows(count, 0.0, 7)) == 0
    parts.sigma.profile = replace(parts.sigma.profile, held_out=0.05)
    rng = np.random.default_rng(0)
    shape = parts.sigma.profile.shape
    codes = [rng.integers(0, most, count) for most in (*shape.codes, shape.suffixes)]
    data = TrainingSet(
        images=[pictures(1)[0]] * count,
        identifiers=np.column_stack(codes),
        captions=[(f"{row}",) for row in range(count)],
    )
    forbidden = {tuple(parts.sigma.prompts.text(str(row))) for row in held_out}
    for name in ("comprehend", "align"):
        stage = replace(parts.sigma.profile.stage(name), caption_replay=1.0)
        explained = shown_captions(parts, stage_examples(parts.sigma, data, stage, 7))
        assert len(explained) >= count - 30
        assert not forbidden & set(explained)


def test_captions_follow_whole_identifiers_leaves_and_prefixes_as_the_stage_says(
    parts: ModelParts,
) -> None:
    data = replace(training_set(), captions=[TEXTS * 10] * COUNT)
    whole = parts.sigma.profile.stage("comprehend")
    assert codes_shown(parts, data, whole) == {5: 1.0}
    assert codes_shown(parts, data, replace(whole, without_suffix=1.0)) == {4: 1.0}
    shares = codes_shown(parts, data, replace(whole, without_suffix=0.5, shortened=0.4))
    # Of 640 captions: a standard error is at most two points.
    assert shares == pytest.approx({0: 0.1, 1: 0.1, 2: 0.1, 3: 0.1, 4: 0.3, 5: 0.3}, abs=0.06)


def codes_shown(parts: ModelParts, data: TrainingSet, stage: Stage) -> dict[int, float]:
    """Shares of the captions of a stage by how many codes stand before them."""
    tokens = set(chain.from_iterable(parts.sigma.levels))
    lengths: list[int] = []
    for example in stage_examples(parts.sigma, data, replace(stage, replay=0.0), 0):
        prompt = example.tokens[: example.prompt_length]
        lengths.append(len(tokens.intersection(prompt)))
    return {length: lengths.count(length) / len(lengths) for length in sorted(set(lengths))}


def shown_captions(parts: ModelParts, examples: Sequence[TrainingExample]) -> list[tuple[int, ...]]:
    """The captions that follow an identifier in training sequences, as tokens."""
    mark = parts.sigma.prompts.caption_mark
    captions: list[tuple[int, ...]] = []
    for example in examples:
        if mark in example.tokens:
            # The last token ends the caption.
            captions.append(example.tokens[example.tokens.index(mark) + 1 : -1])
    return captions


def test_exchanged_identifiers_belong_to_another_leaf(parts: ModelParts) -> None:
    identifiers = identifiers_that_mean_something()
    others = exchanged_rows(identifiers, 0)
    assert (identifiers[others, :4] != identifiers[:, :4]).any(1).all()
    same_leaf = np.array([[1, 2, 3, 0, suffix] for suffix in range(3)])
    assert exchanged_rows(same_leaf, 0).tolist() == [0, 1, 2]


def test_losses_and_similarities_of_a_batch_are_those_of_each_alone(parts: ModelParts) -> None:
    data = training_set()
    texts = ["a star", "a small red circle on a navy background", "two"]
    rows = data.identifiers[:3]
    losses = caption_losses(parts.sigma, rows, texts)
    scores = predicted_similarities(parts.sigma, rows, texts)
    for row, text in enumerate(texts):
        own = rows[row : row + 1]
        (loss,) = caption_losses(parts.sigma, own, [text])
        (score,) = predicted_similarities(parts.sigma, own, [text])
        assert loss == pytest.approx(losses[row], abs=1e-4)
        assert score == pytest.approx(scores[row], abs=1e-4)
        example = parts.sigma.prompts.comprehend(own[0, :4], text)
        with torch.inference_mode():
            generation = float(parts.sigma.losses([example], None).generation)
        assert loss == pytest.approx(generation, abs=1e-4)


def test_a_finer_code_under_another_id1_is_another_word(parts: ModelParts) -> None:
    prompts = parts.sigma.prompts
    one = prompts.explain_prompt([1, 2, 0, 1])
    other = prompts.explain_prompt([3, 2, 0, 1])
    # Mark, four codes, three pairs, mark.
    assert len(one) == len(other) == 9
    shared = set(one) & set(other)
    assert shared == {one[0], one[2], one[3], one[4], one[8]}
    assert len(prompts.explain_prompt([1])) == 3
    assert len(prompts.explain_prompt([])) == 2
    assert set(one[1:8]) <= set(prompts.identifier_vocabulary)


def test_a_model_of_a_version_without_joint_tokens_is_asked_as_it_was_taught() -> None:
    before = parts_from_base(small_base(), replace(small_profile(), joint_tokens=False))
    sigma = before.sigma
    # As a checkpoint is read today: its own tokenizer and the profile of this version.
    now = SigmaModel(sigma.backbone, sigma.tokenizer, sigma.preprocessor, small_profile())
    prompt = now.prompts.explain_prompt([1, 2, 0, 1])
    assert prompt == [
        *now.prompts.text(COMPREHEND),
        *now.prompts.identifier([1, 2, 0, 1]),
        now.prompts.caption_mark,
    ]
    unguided = SigmaModel(
        sigma.backbone, sigma.tokenizer, sigma.preprocessor, replace(small_profile(), guidance=0.0)
    )
    assert explain(Decoder(now), [1, 2, 0, 1]) == explain(Decoder(unguided), [1, 2, 0, 1])


def test_an_identifier_whose_suffix_has_no_token_is_explained_by_its_codes(
    parts: ModelParts,
) -> None:
    prompts = parts.sigma.prompts
    beyond = parts.sigma.profile.shape.suffixes
    assert prompts.explain_prompt([1, 2, 0, 1, beyond]) == prompts.explain_prompt([1, 2, 0, 1])
    assert len(prompts.explain_prompt([1, 2, 0, 1, 0])) > len(prompts.explain_prompt([1, 2, 0, 1]))
