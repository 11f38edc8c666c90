"""The long-run study: its streams, its figures, and the words of later scenes."""

from random import Random

import numpy as np
import pytest

from ops.scenes.captions import captions
from ops.scenes.scene import draw_scene
from ops.scenes.vocabulary import COLOURS, FIRST, LATER, LATER_COLOURS, SHAPES
from ops.study.longrun import StudyConfig
from ops.study.streams import Kind, StreamConfig, draw_stream, later_share
from ops.study.summary import summary, table
from schemas.errors import UsageError

SMALL = StreamConfig("abrupt", seed=3, first=12, settling=4, sessions=10, arrivals=3, deletions=2)


def test_later_scenes_share_no_shape_with_the_first_ones_and_are_described_by_their_own_words() -> (
    None
):
    scene = draw_scene(Random(1), "corpus", LATER)
    assert not {thing.shape for thing in scene.objects} & set(SHAPES)
    assert not set(LATER_COLOURS) & set(COLOURS)
    assert scene.ground in captions(Random(1), scene, 1)[0]


def test_scenes_of_the_first_words_are_what_they_were_before_there_were_later_ones() -> None:
    assert draw_scene(Random("corpus/0/7"), "corpus") == draw_scene(
        Random("corpus/0/7"), "corpus", FIRST
    )
    assert (
        draw_scene(Random("corpus/0/7"), "corpus").fingerprint
        == "abb2dfa55cd8c0789638321e7c6ec610ce590f6187f9adf17dd03a14eb198a6a"
    )


@pytest.mark.parametrize(
    ("kind", "early", "late"),
    [("stationary", 0.0, 0.0), ("gradual", 0.0, 0.6), ("abrupt", 0.0, 0.6)],
)
def test_a_shift_begins_after_three_tenths_of_the_sessions(
    kind: Kind, early: float, late: float
) -> None:
    assert later_share(kind, 6, 20) == early
    assert later_share(kind, 20, 20) == pytest.approx(late)


def test_streams_of_one_seed_begin_with_the_same_images() -> None:
    shifted = draw_stream(SMALL)
    calm = draw_stream(
        StreamConfig(
            "stationary", seed=3, first=12, settling=4, sessions=10, arrivals=3, deletions=2
        )
    )
    assert np.array_equal(shifted.pixels[:12], calm.pixels[:12])
    assert shifted.queries[:12] == calm.queries[:12]
    assert shifted.later.any()
    assert not calm.later[: SMALL.images].any()


def test_only_images_that_are_there_are_deleted_and_only_once() -> None:
    stream = draw_stream(SMALL)
    gone: set[int] = set()
    for session, numbers in enumerate(stream.deleted, start=1):
        assert len(numbers) == 2
        assert not gone & set(numbers.tolist())
        assert numbers.max() < stream.arrivals(session)[0]
        gone |= set(numbers.tolist())


def test_what_a_generation_sees_first_is_mixed_as_its_session_is() -> None:
    stream = draw_stream(SMALL)
    assert not stream.later[stream.settling(1)].any()
    assert stream.later[stream.settling(10)].mean() == pytest.approx(0.5)


def test_a_study_of_unknown_policies_is_refused() -> None:
    with pytest.raises(UsageError, match="never, recluster, periodic, drift, full"):
        StudyConfig(policies=("hope",))


def _run(
    stream: str, policy: str, recall: float, cpu_s: float, action: str, transfer: float
) -> dict[str, object]:
    figures = {"R@1": recall, "R@5": recall, "R@10": recall}
    names = ("at_arrival", "new", "old", "dense_new", "dense_old")
    session = {
        "session": 1,
        "later_share": 0.6,
        "action": action,
        "cpu_s": cpu_s,
        "moved": 0.0,
        "alarms": ["novelty"],
    }
    return {
        "stream": stream,
        "seed": 0,
        "policy": policy,
        "sessions": [session | dict.fromkeys(names, figures)],
        "backward_transfer": {"ours": transfer, "dense": 0.0},
    }


def test_the_answers_compare_each_policy_with_full_retraining() -> None:
    runs = [
        _run("abrupt", "drift", 0.9, 2.0, "refresh", 0.01),
        _run("abrupt", "full", 0.9, 20.0, "full", 0.02),
        _run("stationary", "never", 0.8, 0.0, "", -0.05),
        _run("stationary", "full", 1.0, 20.0, "full", 0.0),
    ]
    document = summary(runs)
    answers = document["answers"]
    assert answers["refresh on drift to full, CPU seconds of one upkeep"]["mean"] == pytest.approx(
        0.1
    )
    assert answers["refresh on drift to full, R@10 after a shifted session"][
        "mean"
    ] == pytest.approx(1.0)
    assert answers["new images without training to full retraining, stationary R@10"][
        "mean"
    ] == pytest.approx(0.8)
    assert answers["forgetting under the best policy, points of R@10"] == {
        "policy": "drift",
        "mean": -1.0,
        "sd": 0.0,
    }
    assert "| exact dense |" in table(document)
