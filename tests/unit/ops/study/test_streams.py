"""Streams of the study, and the words of later scenes."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from ops.scenes.captions import captions
from ops.scenes.scene import draw_scene
from ops.scenes.vocabulary import COLOURS, FIRST, LATER, LATER_COLOURS, SHAPES
from ops.study.streams import StreamConfig, StreamKind, draw_stream, later_share
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
    kind: StreamKind, early: float, late: float
) -> None:
    assert later_share(kind, 6, 20) == early
    assert later_share(kind, 20, 20) == pytest.approx(late)


def test_streams_of_one_seed_begin_with_the_same_images() -> None:
    shifted = draw_stream(SMALL)
    calm = draw_stream(replace(SMALL, kind="stationary"))
    assert np.array_equal(shifted.pixels[:12], calm.pixels[:12])
    assert shifted.queries[:12] == calm.queries[:12]
    assert shifted.later.any()
    assert not calm.later[: SMALL.images].any()


def test_only_images_that_are_there_are_deleted_and_only_once() -> None:
    stream = draw_stream(SMALL)
    deleted: set[int] = set()
    for session, numbers in enumerate(stream.deleted, start=1):
        assert len(numbers) == 2
        assert not deleted & set(numbers.tolist())
        assert numbers.max() < stream.arrivals(session)[0]
        deleted |= set(numbers.tolist())


def test_what_a_generation_sees_first_is_mixed_as_its_session_is() -> None:
    stream = draw_stream(SMALL)
    assert not stream.later[stream.settling(1)].any()
    assert stream.later[stream.settling(10)].mean() == pytest.approx(0.5)


def test_a_stream_without_sessions_or_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="sessions of a stream must be at least 1"):
        replace(SMALL, sessions=0)
    with pytest.raises(UsageError, match="stationary, gradual, abrupt"):
        replace(SMALL, kind="sudden")
