"""What becomes of each file of a folder, and which encoder sees it."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from model.network.profiles import profile
from ops.ingestion import RefusedFile
from ops.photos.photo_folder import PhotosRequest, chosen_encoder, require_training
from ops.photos.photo_plan import fate_of
from ops.photos.photo_result import PhotosResult
from ops.photos.photo_sample import sampled
from ops.photos.photo_training import PROFILE, VIEWS, album_profile
from schemas.errors import UsageError
from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from schemas.records import ManifestEntry
from schemas.settings import Settings
from schemas.training_record import TrainingRecord
from stream.images.file_checksum import file_checksum
from workers.repository.generations import Generation
from workers.repository.rejections import Rejection
from workers.repository.stored_images import StoredImage

NOW = datetime.now(UTC)


@pytest.fixture
def entry(tmp_path: Path) -> ManifestEntry:
    path = tmp_path / "dog.jpg"
    path.write_bytes(b"a dog")
    return ManifestEntry("dog", str(path))


def stored(entry: ManifestEntry, state: str = "indexed") -> StoredImage:
    checksum = file_checksum(entry.path)
    assert checksum is not None
    return StoredImage(1, "dog", 1, state, "", "", (), (), None, NOW, NOW, checksum)


def rejected(moment: datetime) -> Rejection:
    return Rejection("dog", 1, "", "truncated", "it is cut short", "intake", moment)


def test_a_new_file_is_sent_and_a_searchable_one_is_not(entry: ManifestEntry) -> None:
    assert fate_of(entry, None, None) == entry
    assert fate_of(entry, stored(entry), None) == "known"
    # Stored, and nothing finds it yet: a call before was cut short.
    assert fate_of(entry, stored(entry, "accepted"), None) == entry


def test_a_file_that_was_changed_is_sent_again(entry: ManifestEntry) -> None:
    before = stored(entry)
    Path(entry.path).write_bytes(b"another dog")
    assert fate_of(entry, before, None) == entry


def test_a_picture_that_was_deleted_from_the_index_does_not_come_back(entry: ManifestEntry) -> None:
    assert fate_of(entry, replace(stored(entry), state="deleted", checksum=""), None) == "deleted"


def test_a_refused_file_is_told_again_and_not_sent_until_it_is_mended(entry: ManifestEntry) -> None:
    refusal = rejected(NOW + timedelta(hours=1))
    refused = RefusedFile(entry.path, "it is cut short", "truncated")
    assert fate_of(entry, None, refusal) == refused
    # A picture that was fine before and is broken now is told too.
    assert fate_of(entry, stored(entry), refusal) == refused
    assert fate_of(entry, None, rejected(NOW - timedelta(hours=1))) == entry
    os.unlink(entry.path)
    assert fate_of(entry, None, refusal) == entry


def test_a_large_folder_is_learnt_from_by_a_sample_that_does_not_change() -> None:
    entries = [ManifestEntry(str(number), f"/{number}") for number in range(100)]
    assert sampled(entries, 100) == entries
    chosen = sampled(entries, 10)
    assert len(chosen) == 10
    assert chosen == sampled(entries, 10)
    assert [int(entry.image_id) for entry in chosen] == sorted(int(e.image_id) for e in chosen)


def live(encoder: str | None) -> Generation:
    config = GenerationConfig(training=TrainingRecord(encoder_source=encoder))
    shape = IdentifierShape(codes=(2, 2, 2, 2), suffixes=2)
    return Generation(1, "live", None, None, shape, config, NOW, NOW, None)


def test_pictures_are_seen_by_the_encoder_of_the_index_or_the_one_that_was_asked_for(
    tmp_path: Path,
) -> None:
    settings = Settings(home=tmp_path)
    plain = PhotosRequest(tmp_path)
    assert chosen_encoder(settings, plain, None) == "efficientnet-minilm"
    assert chosen_encoder(replace(settings, encoder="a/b"), plain, None) == "a/b"
    assert chosen_encoder(settings, plain, live("a/b")) == "a/b"
    assert chosen_encoder(settings, replace(plain, encoder=str(tmp_path)), None) == str(tmp_path)
    assert chosen_encoder(settings, replace(plain, retrain=True), live("a/b")) == "a/b"
    # The small encoder of rendered scenes has seen no photo.
    again = replace(plain, retrain=True)
    assert chosen_encoder(settings, again, live(None)) == "efficientnet-minilm"


def test_another_encoder_than_that_of_the_index_asks_for_a_training(tmp_path: Path) -> None:
    request = PhotosRequest(tmp_path, encoder="c/d")
    with pytest.raises(UsageError, match="the encoder a/b, got --encoder c/d; leave it out, or"):
        chosen_encoder(Settings(home=tmp_path), request, live("a/b"))
    assert chosen_encoder(Settings(), replace(request, retrain=True), live("a/b")) == "c/d"


def test_a_captioner_is_refused_where_nothing_is_trained(tmp_path: Path) -> None:
    request = PhotosRequest(tmp_path, captioner="c/d")
    with pytest.raises(UsageError, match="got c/d; leave it out, or add --retrain"):
        require_training(request, live("a/b"))
    require_training(request, None)
    require_training(replace(request, retrain=True), live("a/b"))


def test_pictures_of_a_small_album_share_leaves_and_a_large_one_has_the_profile_itself() -> None:
    small = album_profile(300)
    # A beam reaches a few pictures, not one.
    assert small.shape.leaves < 300
    assert small.stage("align").vector_views == 300 * VIEWS
    assert album_profile(100_000) == profile(PROFILE)


def test_a_result_says_what_to_decide() -> None:
    result = PhotosResult(
        folder="/p",
        home="/h",
        url="",
        generation=1,
        encoder="a/b",
        trained=0,
        learnt=1000,
        searchable=90,
        new=1,
        index=5000,
        deleted=2,
    )
    assert [note.split(";")[0] for note in result.notes] == [
        "the index holds 5,000 pictures and learnt from 1,000",
        "deleted from the index before, and left so: 2",
    ]
    assert result.to_text().startswith(
        "/p: searchable pictures 90, new 1, in the whole index 5,000\n"
    )
    assert "few pictures (5)" in replace(result, learnt=5, index=9).notes[0]
    assert "knows no photos" in replace(result, encoder=None).notes[0]
