"""The photo training: a generation from pictures without captions, or the rest of one begun."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.network.profiles import Profile, Stage, profile
from model.progress import Progress
from ops.cli.context import limit_threads
from ops.photos.photo_models import PhotoModels
from ops.photos.photo_sample import SAMPLE, sampled
from schemas.records import ManifestEntry
from stream.manifest import read_manifest, write_manifest
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.runtime.services import Services
from workers.trainer.request import TrainRequest
from workers.trainer.trainer import TrainResult, train
from workers.trainer.training_images import manifest_fingerprint, trainable

# Room for so many times the pictures that are there: an album grows.
ROOM = 2

# Times that a picture of a small album is shown at most: 20 beams reach every leaf of it.
VIEWS = 60

# (pictures, codes of each level) of small albums, the smallest first. 337 photos under 4,096 leaves
# had a leaf each: the beams reached 20 of them, and R@10 was 42% where exact search had 53%.
SMALL_ALBUMS = ((100, (4, 2, 2, 2)), (1000, (8, 4, 4, 2)), (2500, (16, 8, 4, 2)))

# The profile of an album's generation.
PROFILE = "small"


@dataclass(frozen=True, slots=True)
class BegunTraining:
    """A training of pictures that was cut short."""

    generation: int
    entries: list[ManifestEntry]


def train_on_photos(
    services: Services,
    conn: Connection,
    entries: Sequence[ManifestEntry],
    models: PhotoModels,
    progress: Progress,
) -> TrainResult:
    """Train the first generation on pictures, or a sample of them, and let it go live.

    What a killed training of this encoder has done is not done again, though pictures have come
    since.
    """
    file = services.home / "photos" / "training.jsonl"
    begun = begun_training(conn, file, models.encoder)
    limit_threads(services.settings)
    if begun is not None:
        request = TrainRequest(album_profile(len(begun.entries)), resume=True)
        return train(services, begun.entries, request, progress)
    sample = sampled(entries, min(SAMPLE, services.settings.training_images))
    write_manifest(file, sample)
    room = ROOM * max(len(entries), len(sample))
    request = TrainRequest(
        album_profile(len(sample)),
        encoder=models.encoder,
        captioner=models.captioner,
        mode="full",
        expect=room,
    )
    # Read back: what is resumed must be what was begun.
    return train(services, read_manifest(file), request, progress)


def train_again(
    services: Services, conn: Connection, models: PhotoModels, pictures: int, progress: Progress
) -> TrainResult:
    """Train a candidate on the pictures in the store; the live generation answers meanwhile."""
    settings = services.settings
    limit = min(SAMPLE, settings.training_images)
    limit_threads(settings)
    limited = replace(services, settings=replace(settings, training_images=limit))
    unfinished = generations.unfinished(conn)
    if unfinished is not None and _is_of(unfinished, models.encoder, corpus="store"):
        request = TrainRequest(album_profile(pictures), resume=True)
        return train(limited, None, request, progress)
    request = TrainRequest(
        album_profile(pictures),
        encoder=models.encoder,
        captioner=models.captioner,
        mode="full",
        expect=max(1, ROOM * pictures),
    )
    return train(limited, None, request, progress)


def album_profile(pictures: int) -> Profile:
    """The profile to learn so many pictures with: few are not shown for minutes, and share leaves.

    The shape may grow by what the index is to hold.
    """
    album = profile(PROFILE)
    for most, codes in SMALL_ALBUMS:
        if pictures <= most:
            album = replace(album, shape=replace(album.shape, codes=codes))
            break
    views = VIEWS * pictures
    stages: list[Stage] = []
    for stage in album.stages:
        stages.append(replace(stage, vector_views=min(stage.vector_views, views)))
    return album.with_stages(tuple(stages))


def begun_training(conn: Connection, file: Path, encoder: str) -> BegunTraining | None:
    """The unfinished training of the pictures that a file names, with this encoder, if any."""
    unfinished = generations.unfinished(conn)
    if unfinished is None or not file.is_file():
        return None
    entries = read_manifest(file)
    same = unfinished.config.training.manifest == manifest_fingerprint(trainable(entries))
    if not same or not _is_of(unfinished, encoder, corpus="manifest"):
        return None
    return BegunTraining(unfinished.id, entries)


def _is_of(unfinished: Generation, encoder: str, corpus: str) -> bool:
    record = unfinished.config.training
    return (
        record.mode_or_full == "full"
        and record.corpus == corpus
        and record.encoder_source == encoder
    )
