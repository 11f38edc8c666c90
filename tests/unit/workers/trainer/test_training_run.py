"""The training run: requests are checked first, and resumed runs stay what they were."""

from dataclasses import replace
from typing import Any

import pytest

from model.network.profile_document import profile_document
from model.network.profiles import profile
from model.training.adapt import SUFFICIENT_RECALL
from schemas.errors import UsageError
from schemas.generation_config import GenerationConfig
from schemas.records import ManifestEntry
from schemas.training_record import StageEvaluation, TrainingMode, TrainingRecord
from tests.unit.workers.generation_rows import generation
from workers.repository.generations import Generation
from workers.trainer.request import TrainRequest
from workers.trainer.run_base import should_adapt
from workers.trainer.trainer import inherited_evaluations
from workers.trainer.training_images import manifest_fingerprint, query_of, trainable
from workers.trainer.training_plan import stages_to_run
from workers.trainer.training_run import (
    choose_profile,
    first_record,
    require_same_training,
    resumed_request,
)

TINY = profile("tiny")

FINGERPRINT = "f280c01880eb06e3"
"""Of the two entries below, as earlier versions stored it."""


def entry(name: str, *captions: str, split: str | None = None) -> ManifestEntry:
    return ManifestEntry(name, f"/{name}.png", captions, split=split)


def recorded(number: int, **record: Any) -> Generation:
    """An unfinished generation with such a training record."""
    config = GenerationConfig(training=TrainingRecord(**record))
    return generation(number, "building", shape=TINY.shape, config=config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": "retrieve"}, "must be one of codebook, memorize, comprehend, align"),
        ({"adapt": "often"}, "must be one of auto, always, never, got often"),
    ],
)
def test_a_request_with_unknown_words_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainRequest(**changes)


def test_a_training_publishes_after_the_last_stage_only() -> None:
    assert TrainRequest().publishes
    assert not TrainRequest(until="comprehend").publishes


def test_the_first_record_says_what_was_asked_for() -> None:
    entries = [entry("a", "a cat")]
    full = first_record(TrainRequest(seed=3), None, TINY, entries)
    assert full == TrainingRecord(
        mode="full",
        profile="tiny",
        profile_numbers=profile_document(TINY),
        seed=3,
        corpus="manifest",
        reclustered=False,
        manifest=manifest_fingerprint(entries),
    )
    refresh = TrainRequest(mode="refresh", recluster=True)
    parental = first_record(refresh, generation(4, "live"), TINY, None)
    assert (parental.mode, parental.parent, parental.corpus) == ("refresh", 4, "store")
    assert (parental.reclustered, parental.manifest) == (True, None)
    moved = first_record(TrainRequest(mode="recluster"), generation(4, "live"), TINY, None)
    assert moved.reclustered


@pytest.mark.parametrize("mode", [None, "refresh"])
def test_a_training_can_be_resumed_in_its_own_mode(mode: TrainingMode | None) -> None:
    require_same_training(recorded(2, mode="refresh", corpus="store"), mode, None)


def test_a_training_cannot_be_resumed_in_another_mode() -> None:
    with pytest.raises(UsageError, match="unfinished in mode refresh, not full"):
        require_same_training(recorded(2, mode="refresh", corpus="store"), "full", None)


def test_a_training_is_resumed_with_the_images_that_it_began_with() -> None:
    entries = [entry("a", "a cat"), entry("b", "a dog")]
    begun = recorded(2, mode="full", corpus="manifest", manifest=manifest_fingerprint(entries))
    require_same_training(begun, None, entries)
    with pytest.raises(UsageError, match="other images or captions"):
        require_same_training(begun, None, entries[:1])
    with pytest.raises(UsageError, match="resume with its --manifest"):
        require_same_training(begun, None, None)
    with pytest.raises(UsageError, match="resume without --manifest"):
        require_same_training(recorded(2, mode="full", corpus="store"), None, entries)


def test_trainings_of_versions_that_recorded_no_fingerprint_can_be_resumed() -> None:
    require_same_training(recorded(2), None, [entry("a", "a cat")])


def test_a_resumed_request_takes_seed_codebook_and_profile_of_its_run() -> None:
    begun = TrainingRecord(seed=9, reclustered=True, profile="qwen-3b")
    resumed = resumed_request(TrainRequest(seed=1, resume=True), begun)
    assert (resumed.seed, resumed.recluster) == (9, True)
    assert resumed.profile == profile("qwen-3b")
    own = resumed_request(TrainRequest(profile=TINY, seed=1), TrainingRecord())
    assert (own.seed, own.recluster, own.profile) == (1, False, TINY)


def test_the_profile_is_that_of_the_parent_with_its_shape() -> None:
    wide = replace(TINY.shape, suffixes=128)
    parent = replace(recorded(1, profile="tiny"), shape=wide)
    assert choose_profile(None, None) == TINY
    assert choose_profile(None, parent) == replace(TINY, shape=wide)
    # One that was trained with room for more images keeps it, whether or not it is named again.
    assert choose_profile(TINY, parent).shape == wide


def test_a_profile_that_does_not_fit_the_parent_is_refused() -> None:
    with pytest.raises(UsageError, match="leave --profile out"):
        choose_profile(profile("qwen-3b"), recorded(1, profile="tiny"))


def test_only_the_stages_that_are_asked_for_and_not_finished_are_run() -> None:
    begun = TrainingRecord(stages=("codebook", "memorize"))

    def names(until: str) -> list[str]:
        return [stage.name for stage in stages_to_run(TINY.stages, begun, until)]

    assert names("align") == ["comprehend", "align"]
    assert names("comprehend") == ["comprehend"]
    assert names("memorize") == []
    assert names("codebook") == []


def test_evaluations_are_inherited_across_a_re_clustering() -> None:
    evaluations = {"align": StageEvaluation({"R@10": 0.5})}
    trained = recorded(1, evaluations=evaluations)
    clustered = recorded(2, mode="recluster", parent=1)
    refreshed = recorded(3, mode="refresh", parent=2)
    every = [trained, clustered, refreshed]
    assert inherited_evaluations(clustered, every) == evaluations
    assert inherited_evaluations(refreshed, every) == evaluations
    assert inherited_evaluations(None, every) == {}
    assert inherited_evaluations(clustered, [clustered]) == {}


def test_a_base_is_adapted_where_its_recall_is_too_low() -> None:
    assert should_adapt("auto", SUFFICIENT_RECALL - 0.01)
    assert not should_adapt("auto", SUFFICIENT_RECALL)
    assert should_adapt("always", 1.0)
    assert not should_adapt("never", 0.0)


def test_images_of_the_train_split_are_trained_on_with_and_without_captions() -> None:
    entries = [
        entry("a", "a cat", split="train"),
        entry("b", " ", split="train"),
        entry("c", "a dog", split="test"),
    ]
    assert [chosen.image_id for chosen in trainable(entries)] == ["a", "b"]
    assert [chosen.image_id for chosen in trainable(entries[2:])] == ["c"]
    with pytest.raises(UsageError, match="at least one image, got none"):
        trainable([])


def test_a_held_out_caption_is_the_query_where_there_is_one() -> None:
    assert query_of(["shown"], ["held out"]) == "held out"
    assert query_of(["", "shown"], [" "]) == "shown"
    assert query_of([" "], []) == ""


def test_the_fingerprint_is_the_one_that_stored_trainings_have() -> None:
    entries = [entry("a", "a cat"), entry("b")]
    assert manifest_fingerprint(entries) == FINGERPRINT
    assert manifest_fingerprint(entries[::-1]) != FINGERPRINT
