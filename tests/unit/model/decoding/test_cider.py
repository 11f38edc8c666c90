"""CIDEr-D against the numbers of the authors' implementation, and what it must prefer."""

import numpy as np

from model.decoding.cider import CiderScorer

REFERENCES = (
    ("a small red circle on a navy background", "there is a tiny red disc in front of navy"),
    ("two blue squares on plain grey", "a blue box and a large blue square, background grey"),
    ("a green star at the top left", "a green star"),
    ("a yellow heart",),
)

# What the authors' implementation gives the captions of the first test.
PUBLISHED = (3.44646594, 2.32341307, 0.0, 7.5)


def test_scores_are_those_of_the_authors_implementation() -> None:
    """The numbers are those of `CiderScorer(n=4)` in pycocoevalcap 1.2, on the same words."""
    captions = [
        "a small red disc on a navy background",
        "two blue squares",
        "a red circle on navy",
        "a yellow heart",
    ]
    scores = CiderScorer(REFERENCES).scores(captions, range(4))
    np.testing.assert_allclose(scores, PUBLISHED, atol=1e-4)


def test_a_fluent_caption_of_another_image_scores_lower_than_the_own_one() -> None:
    scorer = CiderScorer(REFERENCES)
    own, other = scorer.scores([REFERENCES[0][0], REFERENCES[1][0]], [0, 0])
    assert own > 3 * other


def test_repeating_a_word_gains_nothing_and_an_empty_caption_scores_zero() -> None:
    scorer = CiderScorer(REFERENCES)
    once, often, empty = scorer.scores(["navy", "navy " * 8, ""], [0, 0, 0])
    assert often < once
    assert empty == 0
    assert CiderScorer([()]).scores(["a star"], [0]) == 0
