"""The trainer: from a manifest to a generation that answers. One stage after the other, each one leaves a checkpoint."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.adapt import ENOUGH, AdaptConfig, adapt, base_recall
from model.assign import Assigner, with_primary
from model.base import SHIPPED, Base
from model.checkpoint import Checkpoint, Parts, describe_checkpoint, load_checkpoint, parts_of, pretrained_parts, save_checkpoint
from model.contrastive import CaptionedImages
from model.decoder import Decoder
from model.encoder import Encoder
from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook, pack_all
from model.identifiers.quality import identifier_quality
from model.identifiers.suffixes import assign_suffixes
from model.pixels import Pixels, resize
from model.profiles import Profile
from model.progress import Progress
from model.training import TrainingSet, run_stage, visual_tokens
from schemas.errors import UsageError
from schemas.records import FloatArray, IntArray, ManifestEntry
from workers.append import Appender
from workers.pictures import StoredPictures
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.postings import InitialLoad, bulk_append
from workers.seeding import Seeded, seed_images
from workers.services import Services
from workers.switching import publish

STAGES = ("codebook", "memorize", "comprehend", "align")
_BATCH = 64


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train. `until` is the last stage to run; `resume` goes on with the newest unfinished generation."""

    profile: Profile
    until: str = "align"
    resume: bool = False
    seed: int = 0
    base: Path = SHIPPED
    adapt: str = "auto"


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came out: the generation, its state, how many images it was trained on, and figures of each step."""

    generation: int
    state: str
    images: int
    rejected: tuple[dict[str, str], ...] = ()
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Material:
    """The training images: stored rows, pixels and captions, in manifest order."""

    seeded: Seeded
    pictures: Pixels
    captions: list[tuple[str, ...]]
    digest: str


def train(services: Services, entries: Sequence[ManifestEntry], request: TrainRequest, progress: Progress) -> TrainResult:
    """Run the stages that are still to do and, after the last one, load the trie and put the generation on its way.

    The first generation goes live at once; later ones stay in shadow until they are promoted.
    """
    with services.connect("trainer") as conn:
        material = _material(services, conn, entries, request.profile, progress)
        generation, folder, about = _begin(services, conn, material, request)
        parts, about = _parts(folder, about, material, request, progress)
        embeddings = embed(parts.encoder, material.pictures, progress)
        codebook, about = _codebook(folder, about, embeddings, request, progress)
        suffixed = assign_suffixes(codebook.leaves(embeddings), codebook.config.shape)
        identifiers = np.column_stack([_codes(suffixed.leaves, codebook), suffixed.suffixes])
        figures: dict[str, Any] = {"identifiers": identifier_quality(identifiers[:, :4], embeddings, codebook).to_dict()}
        checkpoint = Checkpoint(parts.sigma, codebook, parts.encoder, about)
        _run_stages(folder, checkpoint, parts, material, identifiers, request, progress)
        generations.describe(
            conn, generation, codebook_version=codebook.version, checkpoint_path=folder.name, config=_config(request, about)
        )
        state = "building"
        if request.until == STAGES[-1]:
            load = initial_load(
                checkpoint,
                material.seeded.image_keys,
                material.pictures,
                suffixed.leaves,
                suffixed.suffixes,
                embeddings,
                services.settings.postings,
                progress,
            )
            bulk_append(conn, generation, load)
            appender = Appender(generation, checkpoint.sigma, checkpoint.encoder, services.settings.postings)
            state = publish(services, conn, generation, appender, progress)
    return TrainResult(generation, state, len(material.pictures), material.seeded.rejected, figures)


def trainable(entries: Sequence[ManifestEntry]) -> list[ManifestEntry]:
    """Entries to train on: those of split `train` if the manifest has any, else all; each with a caption."""
    split = [entry for entry in entries if entry.split == "train"] or list(entries)
    captioned = [entry for entry in split if any(caption.strip() for caption in entry.captions)]
    if not captioned:
        raise UsageError(f"none of the {len(split)} training images has a caption, and the model learns from captions; add `captions`")
    return captioned


def embed(encoder: Encoder, pictures: Pixels, progress: Progress) -> FloatArray:
    """(N, D) float32 image embeddings."""
    parts = []
    with progress("embed images", len(pictures)) as bar:
        for start in range(0, len(pictures), _BATCH):
            parts.append(encoder.embed_images(pictures[start : start + _BATCH]))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def initial_load(
    checkpoint: Checkpoint,
    image_keys: IntArray,
    pictures: Pixels,
    leaves: IntArray,
    suffixes: IntArray,
    embeddings: FloatArray,
    postings: int,
    progress: Progress,
) -> InitialLoad:
    """Postings of the training images: their identifiers, and the model's best other leaves as alternates."""
    assigner = Assigner(Decoder(checkpoint.sigma), postings)
    rows: list[tuple[int, int, float, int]] = []
    confidences = np.zeros(len(image_keys), dtype=np.float32)
    with progress("post images", len(image_keys)) as bar:
        for start in range(0, len(image_keys), _BATCH):
            found, scores = assigner.search(pictures[start : start + _BATCH])
            for offset in range(len(found)):
                at = start + offset
                confidences[at] = scores[offset, 0]
                for rank, posting in enumerate(with_primary(int(leaves[at]), found[offset], scores[offset], postings)):
                    rows.append((posting.leaf, int(image_keys[at]), posting.weight, -1 if rank else int(suffixes[at])))
            bar.update(len(found))
    columns = list(zip(*rows, strict=True))
    return InitialLoad(
        leaves=np.array(columns[0], np.int64),
        posted_keys=np.array(columns[1], np.int64),
        weights=np.array(columns[2], np.float32),
        suffixes=np.array(columns[3], np.int64),
        image_keys=image_keys,
        embeddings=embeddings.astype(np.float16),
        confidences=confidences,
    )


def _material(services: Services, conn: Connection, entries: Sequence[ManifestEntry], profile: Profile, progress: Progress) -> _Material:
    chosen = trainable(entries)
    digest = hashlib.sha256(repr([(entry.image_id, entry.captions) for entry in chosen]).encode()).hexdigest()[:16]
    seeded = seed_images(services, conn, chosen, progress)
    kept = [chosen[row] for row in seeded.rows]
    side = profile.tiny.image_px if profile.tiny else 0
    pictures = StoredPictures(services.store, seeded.uris, (lambda image: resize(image, side)) if side else None)
    return _Material(seeded, pictures, [tuple(c for c in entry.captions if c.strip()) for entry in kept], digest)


def _begin(services: Services, conn: Connection, material: _Material, request: TrainRequest) -> tuple[int, Path, dict[str, Any]]:
    """The generation to work on, its folder and what its checkpoint says so far."""
    if request.resume:
        open_ones = [g for g in generations.generations(conn) if g.state == "building"]
        if not open_ones:
            raise UsageError("no generation is unfinished, so there is nothing to resume; run without --resume")
        found = open_ones[-1]
        folder = services.generations / f"g{found.id}"
        about = describe_checkpoint(folder) if (folder / "checkpoint.json").is_file() else {"stages": []}
        if found.config.get("manifest", material.digest) != material.digest:
            raise UsageError(f"generation {found.id} was begun with other images or captions; resume with the same manifest or start anew")
        return found.id, folder, about
    config = {"manifest": material.digest, "images": len(material.pictures), "profile": request.profile.name, "seed": request.seed}
    generation = generations.create_generation(conn, request.profile.shape, config=config)
    folder = services.generations / f"g{generation}"
    folder.mkdir(parents=True, exist_ok=True)
    return generation, folder, {"stages": [], **config}


def _parts(
    folder: Path, about: dict[str, Any], material: _Material, request: TrainRequest, progress: Progress
) -> tuple[Parts, dict[str, Any]]:
    """Model, encoder and teacher: from the checkpoint so far, or fresh from the (adapted) base or the pretrained weights."""
    if request.profile.tiny is None:
        fresh = pretrained_parts(request.profile)
    else:
        adapted = folder / "base"
        if adapted.is_dir():
            base = Base.load(adapted)
        else:
            base = Base.load(request.base)
            data = CaptionedImages(np.stack(material.pictures[:]), material.captions)
            recall = base_recall(base, data, request.seed)
            about = about | {"base_recall": round(recall, 4)}
            if request.adapt == "always" or (request.adapt == "auto" and recall < ENOUGH):
                adapt(base, data, AdaptConfig(seed=request.seed), progress).save(adapted)
                base = Base.load(adapted)
        fresh = parts_of(base, request.profile)
    if about["stages"]:
        known = load_checkpoint(folder)
        return Parts(known.sigma, known.encoder, fresh.teacher), about
    return fresh, about


def _codebook(
    folder: Path, about: dict[str, Any], embeddings: FloatArray, request: TrainRequest, progress: Progress
) -> tuple[Codebook, dict[str, Any]]:
    if "codebook" in about["stages"]:
        return Codebook.load(folder), about
    with progress("codebook", request.profile.shape.codes[0] + 1) as bar:
        codebook = fit_codebook(embeddings, CodebookConfig(request.profile.shape, seed=request.seed), tick=bar.update)
    return codebook, about | {"stages": ["codebook"]}


def _codes(leaves: IntArray, codebook: Codebook) -> IntArray:
    shape = codebook.config.shape
    codes = np.column_stack([leaves // (shape.leaves // shape.prefixes(level + 1)) % shape.codes[level] for level in range(4)])
    if not np.array_equal(pack_all(codes, shape), leaves):
        raise AssertionError("packing and unpacking leaves disagree")
    return codes.astype(np.int64)


def _run_stages(
    folder: Path,
    checkpoint: Checkpoint,
    parts: Parts,
    material: _Material,
    identifiers: IntArray,
    request: TrainRequest,
    progress: Progress,
) -> None:
    """The stages that are to do, each followed by a checkpoint."""
    about = checkpoint.about
    save_checkpoint(checkpoint, folder)
    wanted = STAGES[1 : STAGES.index(request.until) + 1]
    todo = [name for name in wanted if name not in about["stages"]]
    views, labels, visual = request.profile.views, None, None
    if todo and views:
        visual = visual_tokens(parts.sigma, np.stack(material.pictures[:]), views, request.seed, progress)
    for name in todo:
        stage = next(stage for stage in request.profile.stages if stage.name == name)
        if name == "align" and stage.soft_label_weight > 0:
            labels = soft_labels(parts, material.pictures, material.captions, progress)
        data = TrainingSet(material.pictures, identifiers, material.captions, labels, visual)
        run_stage(parts.sigma, data, stage, folder / "training", seed=request.seed, resume=request.resume, progress=progress)
        about["stages"] = [*about["stages"], name]
        save_checkpoint(checkpoint, folder)


def soft_labels(parts: Parts, pictures: Pixels, captions: Sequence[Sequence[str]], progress: Progress) -> list[FloatArray]:
    """The teacher's score of each image with each of its captions (equation 7)."""
    labels: list[FloatArray] = []
    with progress("soft labels", len(pictures)) as bar:
        for start in range(0, len(pictures), _BATCH):
            texts = captions[start : start + _BATCH]
            images = [image for image, own in zip(pictures[start : start + _BATCH], texts, strict=True) for _ in own]
            scores = parts.teacher.score(images, [text for own in texts for text in own])
            labels += np.split(scores, np.cumsum([len(own) for own in texts])[:-1])
            bar.update(len(texts))
    return labels


def _config(request: TrainRequest, about: dict[str, Any]) -> dict[str, Any]:
    return {"stages": about["stages"], "base_recall": about.get("base_recall"), "seed": request.seed}
