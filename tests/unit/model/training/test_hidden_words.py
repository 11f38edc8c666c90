"""Hidden words: a caption is learnt from its identifier, and not only from the words before."""

from dataclasses import replace
from pathlib import Path

import torch

from model.network.parts import ModelParts, parts_from_base
from model.training.stages import run_stage
from tests.unit.model.conftest import small_base, small_profile
from tests.unit.model.training.test_stages import training_set

CAPTION = "two blue squares on navy and a large star at the top left"


def test_words_behind_the_prompt_are_hidden_and_nothing_else(parts: ModelParts) -> None:
    prompts = parts.sigma.prompts
    caption = prompts.comprehend((1, 2, 0, 1), CAPTION)
    hidden = prompts.with_hidden_words(caption, 0.5, (0, 3)).hidden
    words = len(caption.tokens) - caption.prompt_length
    assert 0.2 * words < len(hidden) < 0.8 * words
    assert min(hidden) >= caption.prompt_length
    # A run that was resumed hides the same, and another step others.
    assert prompts.with_hidden_words(caption, 0.5, (0, 3)).hidden == hidden
    assert prompts.with_hidden_words(caption, 0.5, (0, 4)).hidden != hidden
    assert len(prompts.with_hidden_words(caption, 1.0, (0, 3)).hidden) == words
    for other in (prompts.align(CAPTION, (1, 2, 0, 1, 0), 0.5), prompts.memorize(0, 4, (1, 2))):
        assert prompts.with_hidden_words(other, 1.0, (0, 3)) == other


def test_the_model_does_not_see_a_hidden_word_and_still_predicts_it(parts: ModelParts) -> None:
    sigma = parts.sigma
    example = sigma.prompts.comprehend((1, 2, 0, 1), CAPTION)
    place = example.prompt_length + 1
    exchanged = list(example.tokens)
    exchanged[place] = sigma.prompts.text("circle")[-1]
    assert exchanged[place] != example.tokens[place]
    other = replace(example, tokens=tuple(exchanged))

    def states_behind(hidden: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        pair = [replace(each, hidden=hidden) for each in (example, other)]
        inputs = sigma.embed([each.tokens for each in pair], None)
        states = sigma._hidden_states(inputs.without([each.hidden for each in pair]))
        return states[0, place:], states[1, place:]

    assert torch.equal(*states_behind((place,)))
    assert not torch.equal(*states_behind(()))
    # What stands there is a target as before.
    own = sigma.losses([replace(example, hidden=(place,))], None).generation
    assert not torch.equal(own, sigma.losses([replace(other, hidden=(place,))], None).generation)
    assert not torch.equal(own, sigma.losses([example], None).generation)


def test_a_stage_hides_the_share_that_it_is_told(tmp_path: Path) -> None:
    weights: list[torch.Tensor] = []
    for share in (0.0, 0.5):
        parts = parts_from_base(small_base(), small_profile())
        stage = replace(parts.sigma.profile.stage("comprehend"), epochs=0.5, hidden_words=share)
        run_stage(parts.sigma, training_set(parts), stage, tmp_path, seed=3)
        weights.append(parts.sigma.backbone.model.language_model.layers[0].self_attn.q_proj.weight)
    assert not torch.equal(*weights)
