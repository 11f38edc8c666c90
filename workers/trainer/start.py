"""Starts: the model, codebook and plan that a run begins its stages with; from a base, or from the parent generation."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.network.base import SHIPPED, Base
from model.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from model.network.encoder import Encoder
from model.network.jina import JinaTeacher
from model.network.parts import ModelParts, parts_from_base, pretrained_parts
from model.network.profiles import Profile
from model.network.resize import Pixels
from model.network.teacher import Teacher
from model.progress import Progress
from model.training.adapt import SUFFICIENT_RECALL, AdaptConfig, adapt, base_recall
from model.training.contrastive import CaptionedImages
from schemas.errors import RefuseToStartError, UsageError
from schemas.records import FloatArray, HalfArray, IntArray
from schemas.training_record import TrainingRecord
from workers.generations.model_assigner import load_generation_checkpoint
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.training_data import (
    IndexedImages,
    embeddings_of,
    indexed_images,
    sampled,
    trainable_keys,
)
from workers.runtime.services import Services
from workers.trainer.material import Material, from_manifest, from_store
from workers.trainer.plan import Plan, leaves_in, plan_full, plan_recluster, plan_refresh
from workers.trainer.run import Run
from workers.trainer.stage_runner import clocked

BASE = "base"
"""Folder of a generation's own base, in the folder of its checkpoint. Without one, the shipped base is meant."""

_BATCH, _PAGE, _SAMPLE = 64, 4096, 20_000


@dataclass(frozen=True, slots=True)
class Start:
    """What the stages begin with. `embeddings` (N, D) are those of the material; of further planned images, the parent has them."""

    checkpoint: Checkpoint
    material: Material
    plan: Plan
    embeddings: HalfArray
    teacher: Callable[[], Teacher]


def start(services: Services, conn: Connection, run: Run, progress: Progress) -> Start:
    """Make or read what the run's stages begin with; the codebook, the plan and a first checkpoint are in its folder afterwards."""
    if run.parent is None:
        return _from_base(services, conn, run, progress)
    return _from_parent(services, conn, run, run.parent, progress)


def _from_base(services: Services, conn: Connection, run: Run, progress: Progress) -> Start:
    about = run.about
    with clocked(about, "prepare"):
        material = _material(services, conn, run, progress)
        parts = _parts(run, material, progress)
        embeddings = embed(parts.encoder, material.pictures, progress)
        if run.has_codebook:
            codebook, plan = Codebook.load(run.folder), Plan.load(run.folder)
            material, plan, embeddings = _common(material, plan, embeddings)
        else:
            codebook = _fit(embeddings, run, progress)
            plan = plan_full(material.image_keys, codebook.leaves(embeddings), run.profile.shape)
            plan.save(run.folder)
    checkpoint = Checkpoint(parts.sigma, codebook, parts.encoder)
    about["images"] = len(material)
    _keep(checkpoint, run)
    return Start(checkpoint, material, plan, embeddings.astype(np.float16), lambda: parts.teacher)


def _from_parent(
    services: Services, conn: Connection, run: Run, parent: Generation, progress: Progress
) -> Start:
    about = run.about
    with clocked(about, "prepare"):
        if run.has_codebook:
            checkpoint, plan = load_checkpoint(run.folder), Plan.load(run.folder)
        else:
            before = load_generation_checkpoint(services.checkpoints, parent)
            codebook, plan = _plan_after(
                conn, run, parent, before.codebook, services.settings.training_images, progress
            )
            plan.save(run.folder)
            checkpoint = Checkpoint(before.sigma, codebook, before.encoder)
            _inherit(services.checkpoints / parent.folder / BASE, run.folder / BASE)
        wanted = plan.image_keys[plan.learnt]
        material = from_store(services, conn, wanted, checkpoint.sigma.profile)
        stored = embeddings_of(conn, parent.id, material.image_keys)
        material = material.rows(stored.present)
        embeddings = stored.embeddings[stored.present]
        plan = plan.without_lost(wanted, material.image_keys)
    about["images"] = len(material) if run.mode == "refresh" else len(plan.image_keys)
    _keep(checkpoint, run)
    encoder, profile = checkpoint.encoder, checkpoint.sigma.profile
    return Start(
        checkpoint,
        material,
        plan,
        embeddings,
        lambda: _teacher(run.folder / BASE, profile, encoder),
    )


def _keep(checkpoint: Checkpoint, run: Run) -> None:
    if not run.has_codebook:
        run.about["stages"] = ["codebook"]
        record = TrainingRecord.from_json(run.about)
        save_checkpoint(replace(checkpoint, record=record), run.folder)


def _material(services: Services, conn: Connection, run: Run, progress: Progress) -> Material:
    if run.entries is not None:
        return from_manifest(services, conn, run.entries, run.profile, progress)
    limit, seed = services.settings.training_images, run.request.seed
    keys = (
        Plan.load(run.folder).image_keys if run.has_codebook else trainable_keys(conn, limit, seed)
    )
    material = from_store(services, conn, keys, run.profile)
    if not len(material):
        raise UsageError(
            "the store holds no image with a caption, and the model learns from captions; ingest some first"
        )
    return material


def _common(
    material: Material, plan: Plan, embeddings: FloatArray
) -> tuple[Material, Plan, FloatArray]:
    """What a resumed run still has, and had when it began."""
    kept = np.isin(material.image_keys, plan.image_keys)
    material = material.rows(kept)
    return material, plan.without_lost(plan.image_keys, material.image_keys), embeddings[kept]


def _parts(run: Run, material: Material, progress: Progress) -> ModelParts:
    """Model, encoder and teacher: from the checkpoint so far, or fresh from the (adapted) base or the pretrained weights."""
    # New layers, such as the soft-label head, draw their first weights.
    torch.manual_seed(run.request.seed)
    fresh = (
        pretrained_parts(run.profile)
        if run.profile.tiny is None
        else parts_from_base(_base(run, material, progress), run.profile)
    )
    if not run.has_codebook:
        return fresh
    known = load_checkpoint(run.folder)
    return ModelParts(known.sigma, known.encoder, fresh.teacher)


def _base(run: Run, material: Material, progress: Progress) -> Base:
    """The base of the run: its own if it has one, else the one asked for, trained further on these images where that helps."""
    own, request = run.folder / BASE, run.request
    if own.is_dir():
        return Base.load(own)
    base = Base.load(request.base)
    data = CaptionedImages(np.stack(material.pictures[:]), material.captions)
    recall = base_recall(base, data, request.seed)
    run.about["base_recall"] = round(recall, 4)
    if request.adapt == "always" or (request.adapt == "auto" and recall < SUFFICIENT_RECALL):
        aside = run.folder / f".{BASE}"
        adapt(base, data, AdaptConfig(seed=request.seed), progress).save(aside)
        aside.replace(own)
        return Base.load(own)
    if request.base != SHIPPED:
        _inherit(request.base, own)
    return base


def _inherit(base: Path, own: Path) -> None:
    """Copy a base, whole or not at all: the teacher of later refreshes has to be the one that belongs to the encoder."""
    if base.is_dir() and not own.is_dir():
        aside = own.with_name(f".{own.name}")
        shutil.copytree(base, aside, dirs_exist_ok=True)
        aside.replace(own)


def _teacher(base: Path, profile: Profile, encoder: Encoder) -> Teacher:
    if profile.tiny is None:
        if profile.teacher is None:
            raise RefuseToStartError(
                f"profile {profile.name} names no teacher; use one of the qwen profiles"
            )
        return JinaTeacher(profile.teacher)
    found = Base.load(base if base.is_dir() else SHIPPED)
    if found.encoder.width != encoder.width:
        raise RefuseToStartError(
            f"the base in {base} is {found.encoder.width} wide, the encoder {encoder.width}; retrain in full"
        )
    return found.teacher


def _fit(embeddings: FloatArray, run: Run, progress: Progress) -> Codebook:
    config = CodebookConfig(run.profile.shape, seed=run.request.seed)
    with progress("codebook", run.profile.shape.codes[0] + 1) as bar:
        return fit_codebook(embeddings, config, tick=bar.update)


def _plan_after(
    conn: Connection,
    run: Run,
    parent: Generation,
    codebook: Codebook,
    limit: int,
    progress: Progress,
) -> tuple[Codebook, Plan]:
    held, request = indexed_images(conn, parent.id), run.request
    if not len(held.image_keys):
        raise UsageError(
            f"generation {parent.id} holds no image, so there is nothing to start a {run.mode} with; ingest some first"
        )
    leaves = held.leaves
    if run.mode == "recluster" or request.recluster:
        codebook, leaves, run.about["recluster"] = _reclustered(
            conn, parent, held, codebook, request.seed, progress
        )
    if run.mode == "recluster":
        return codebook, plan_recluster(held, leaves, parent.shape)
    return codebook, plan_refresh(
        held, leaves, parent.shape, replay=run.profile.replay, limit=limit, seed=request.seed
    )


def _reclustered(
    conn: Connection,
    parent: Generation,
    held: IndexedImages,
    old: Codebook,
    seed: int,
    progress: Progress,
) -> tuple[Codebook, IntArray, dict[str, Any]]:
    """A codebook fitted anew on a sample of what the parent holds, each image's leaf in it, and the report.

    An image moves when its own best codes, those that the codebook computes, do not last. Where the model chose other codes,
    that was no error of the codebook, and they stay with the ones that would have lasted.
    """
    from model.identifiers.recluster import ReclusterConfig, keep_codes, recluster_within_budget
    from model.identifiers.recluster_report import recluster_report

    rows = sampled(np.arange(len(held.image_keys)), _SAMPLE, seed)
    sample = embeddings_of(conn, parent.id, held.image_keys[rows])
    seen = sample.embeddings[sample.present].astype(np.float32)
    leaves = held.leaves.copy()
    with progress("recluster", len(leaves)) as bar:
        new, config = recluster_within_budget(old, seen, ReclusterConfig(seed=seed))
        for begin in range(0, len(leaves), _PAGE):
            stored = embeddings_of(conn, parent.id, held.image_keys[begin : begin + _PAGE])
            at = begin + np.flatnonzero(stored.present)
            page = stored.embeddings[stored.present].astype(np.float32)
            own = old.encode(page)
            kept = keep_codes(own, page, new, config)
            moving = (kept != own).any(axis=1)
            leaves[at[moving]] = leaves_in(new, kept[moving])
            bar.update(len(stored.present))
    own = old.encode(seen)
    report = recluster_report(own, keep_codes(own, seen, new, config), seen, old, new, None)
    return (
        new,
        leaves,
        report.to_dict() | {"images": len(leaves), "moved": int((leaves != held.leaves).sum())},
    )


def embed(encoder: Encoder, pictures: Pixels, progress: Progress) -> FloatArray:
    """(N, D) float32 image embeddings."""
    parts = []
    with progress("embed images", len(pictures)) as bar:
        for begin in range(0, len(pictures), _BATCH):
            parts.append(encoder.embed_images(pictures[begin : begin + _BATCH]))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)
