"""An index batch as values: what needs work, what models are asked, and which messages come out."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from model.decoding.leaves import Leaves
from schemas.events import (
    ACCEPTED,
    DELETED,
    INDEXED,
    OPERATIONS,
    REJECTED,
    EventRecord,
    ImageAccepted,
    ImageDeleted,
    ImageIndexed,
    decode,
    encode,
)
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from schemas.records import ByteArray, Posting
from stream.log.event_log import Event
from workers.generations.inferred import Inferred
from workers.index_batch import (
    SLICE,
    AcceptedEvent,
    BatchInference,
    IndexItem,
    age_s,
    append_targets,
    is_finished,
    outcome_messages,
    read_events,
    refusal_messages,
    slices,
    unfinished,
    unloaded_live,
    without_repeats,
)
from workers.repository.generations import Generation
from workers.repository.postings import AppendOutcome, AppendStatus
from workers.repository.stored_images import StoredImage

SHAPE = IdentifierShape((2, 2, 2, 2), 4)
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)


def image(name: str, version: int = 1) -> ImageAccepted:
    return ImageAccepted(
        name, f"file:///{name}", "images/x.png", "0" * 64, 8, 8, MOMENT, version=version
    )


def event(record: EventRecord | bytes, offset: int = 0, topic: str = ACCEPTED) -> Event:
    value = record if isinstance(record, bytes) else encode(record)
    return Event(topic, 0, offset, "key", value, {}, MOMENT)


def accepted(name: str, version: int = 1, offset: int = 0) -> AcceptedEvent:
    record = image(name, version)
    return AcceptedEvent(event(record, offset), record)


def stored(name: str, key: int, version: int = 1, state: str = "indexed") -> StoredImage:
    return StoredImage(key, name, version, state, "", "", (), (), None, MOMENT, None)


def generation(number: int, state: str) -> Generation:
    return Generation(number, state, None, None, SHAPE, GenerationConfig(), MOMENT, None, None)


def item(name: str, shade: int = 0) -> IndexItem:
    record = image(name)
    return IndexItem(event(record), record, np.full((2, 2, 3), shade, np.uint8))


def inferred(leaf: int) -> Inferred:
    return Inferred(Leaves((Posting(leaf, 0.0),), (), -1.5), np.zeros(4, np.float16))


class CountingAssigner:
    """Answers with the shade of each picture as its leaf, and notes the sizes of its batches."""

    shape = SHAPE

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def infer(self, pictures: Sequence[ByteArray]) -> list[Inferred]:
        self.sizes.append(len(pictures))
        return [inferred(int(picture[0, 0, 0])) for picture in pictures]


def test_slices_are_full_but_for_the_last_and_keep_the_order() -> None:
    assert list(slices(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(slices([], 3)) == []


def test_slices_take_no_more_than_one_slice_ahead() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(9):
            taken.append(number)
            yield number

    assert next(slices(source(), 3)) == [0, 1, 2]
    assert taken == [0, 1, 2]


def test_events_that_cannot_be_parsed_are_refused_and_the_others_are_kept() -> None:
    good, bad = event(image("a"), 0), event(b"not json", 1)
    found, refused = read_events([good, bad])
    assert found == [AcceptedEvent(good, image("a"))]
    assert [refusal.event for refusal in refused] == [bad]
    assert refused[0].rejection.stage == "index"


def test_a_record_that_is_no_accepted_image_is_passed_over() -> None:
    assert read_events([event(ImageDeleted("a"), topic=DELETED)]) == ([], [])


def test_of_a_repeated_version_only_the_last_event_stays_at_the_place_of_the_first() -> None:
    batch = [accepted("a", offset=0), accepted("b", offset=1), accepted("a", offset=2)]
    kept = without_repeats(batch)
    assert [(kept_event.image.image_id, kept_event.event.offset) for kept_event in kept] == [
        ("a", 2),
        ("b", 1),
    ]


def test_two_versions_of_an_image_are_no_repeats() -> None:
    batch = [accepted("a", version=1), accepted("a", version=2)]
    assert without_repeats(batch) == batch


@pytest.mark.parametrize(
    ("version", "state", "posted", "finished"),
    [
        (2, "indexed", {7}, False),
        (2, "deleted", {7}, False),
        (1, "indexed", {7}, True),
        (1, "indexed", set(), False),
        (1, "deleted", set(), True),
        (0, "indexed", set(), True),
    ],
    ids=["newer", "comes back", "posted", "not posted", "deleted", "older"],
)
def test_an_image_is_finished_when_replaced_deleted_or_posted_everywhere(
    version: int, state: str, posted: set[int], finished: bool
) -> None:
    assert is_finished(version, stored("a", 7, version=1, state=state), posted) is finished


def test_only_unknown_and_unfinished_images_reach_the_model() -> None:
    batch = [accepted("new"), accepted("replayed"), accepted("elsewhere"), accepted("gone")]
    known = {
        "replayed": stored("replayed", 1),
        "elsewhere": stored("elsewhere", 2),
        "gone": stored("gone", 3, state="deleted"),
    }
    kept = unfinished(batch, known, {1})
    assert [kept_event.image.image_id for kept_event in kept] == ["new", "elsewhere"]


def test_a_live_generation_that_no_model_looked_for_is_named() -> None:
    receiving = [generation(1, "retired"), generation(2, "live"), generation(3, "shadow")]
    assert unloaded_live(receiving, {1, 3}) == receiving[1]
    assert unloaded_live(receiving, {2}) is None


def test_a_shadow_generation_that_is_not_loaded_is_left_to_catch_up() -> None:
    receiving = [generation(1, "retired"), generation(2, "live"), generation(3, "shadow")]
    assert [target.id for target in append_targets(receiving, {1, 2})] == [1, 2]


def test_a_loaded_generation_that_receives_no_more_is_not_appended_to() -> None:
    assert append_targets([generation(2, "live")], {1, 2}) == [generation(2, "live")]


def test_a_model_looks_at_a_batch_in_slices_and_answers_stay_in_the_order_of_the_items() -> None:
    assigner = CountingAssigner()
    inference = BatchInference(assigner)
    shades = range(SLICE + 5)
    inference.add([item(str(shade), shade) for shade in shades])
    assert assigner.sizes == [SLICE, 5]
    leaves = [answer.leaves.postings[0].leaf for answer in inference.inferred]
    assert leaves == list(shades)


def test_an_empty_slice_asks_no_model() -> None:
    assigner = CountingAssigner()
    BatchInference(assigner).add([])
    assert assigner.sizes == []


def test_an_appended_image_is_announced_with_its_identifier_and_all_its_leaves() -> None:
    outcome = AppendOutcome(
        7, AppendStatus.INDEXED, leaf=5, suffix=2, postings=(Posting(5, 0.0), Posting(9, -1.0))
    )
    (message,) = outcome_messages([item("a")], [inferred(5)], [outcome], 3, SHAPE)
    assert message.topic == INDEXED
    record = decode(INDEXED, message.value)
    assert isinstance(record, ImageIndexed)
    assert (record.image_id, record.generation, record.version) == ("a", 3, 1)
    assert list(record.identifier) == SHAPE.identifier(5, 2)
    assert record.leaves == (5, 9)
    assert record.confidence == -1.5


def test_an_image_in_full_leaves_is_announced_and_told_to_the_person_on_call() -> None:
    outcome = AppendOutcome(7, AppendStatus.BEYOND, 5, SHAPE.suffixes, (Posting(5, 0.0),))
    note, indexed = outcome_messages([item("a")], [inferred(5)], [outcome], 3, SHAPE)
    assert (note.topic, note.key) == (OPERATIONS, "a")
    record = decode(INDEXED, indexed.value)
    assert isinstance(record, ImageIndexed)
    assert record.identifier[4] == SHAPE.suffixes


@pytest.mark.parametrize("status", [AppendStatus.PRESENT, AppendStatus.GONE])
def test_a_replayed_or_deleted_image_is_not_announced(status: AppendStatus) -> None:
    outcome = AppendOutcome(7, status)
    assert outcome_messages([item("a")], [inferred(5)], [outcome], 3, SHAPE) == []


def test_outcomes_belong_to_items_by_their_order_and_their_number_has_to_agree() -> None:
    outcomes = [
        AppendOutcome(7, AppendStatus.PRESENT),
        AppendOutcome(8, AppendStatus.INDEXED, leaf=1, suffix=0),
    ]
    messages = outcome_messages(
        [item("a"), item("b")], [inferred(0), inferred(1)], outcomes, 3, SHAPE
    )
    assert [message.key for message in messages] == ["b"]
    with pytest.raises(ValueError, match="shorter"):
        outcome_messages([item("a"), item("b")], [inferred(0), inferred(1)], outcomes[:1], 3, SHAPE)


def test_refused_events_become_dead_letters() -> None:
    _, refused = read_events([event(b"not json", 4)])
    (message,) = refusal_messages(refused)
    assert message.topic == REJECTED
    assert "4" in message.headers.values()


def test_the_age_counts_from_publication_and_from_arrival_when_that_is_unknown() -> None:
    arrived = image("a")
    assert age_s(arrived, MOMENT + timedelta(seconds=9)) == 9.0
    published = ImageAccepted(
        "a",
        "file:///a",
        "images/x.png",
        "0" * 64,
        8,
        8,
        MOMENT,
        published_at=MOMENT + timedelta(seconds=5),
    )
    assert age_s(published, MOMENT + timedelta(seconds=9)) == 4.0


def test_a_producers_clock_that_runs_ahead_gives_no_negative_age() -> None:
    assert age_s(image("a"), MOMENT - timedelta(seconds=3)) == 0.0
