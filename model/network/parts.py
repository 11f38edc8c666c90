"""Model parts: a model before its training, made from a base or from pretrained weights."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from model.network.backbone import pretrained_backbone
from model.network.base import Base
from model.network.encoder import Encoder
from model.network.hub import open_snapshot, require_kind
from model.network.inputs import ImagePreprocessor
from model.network.jina import JinaTeacher
from model.network.precision import default_device
from model.network.profiles import Profile
from model.network.reranker import RerankerTeacher, require_reranker
from model.network.sigma import SigmaModel
from model.network.teacher import Teacher
from model.network.tokenizer import load_tokenizer
from model.network.vocabulary import extend_vocabulary
from schemas.errors import RefuseToStartError


@dataclass(frozen=True, slots=True)
class ModelParts:
    """A model that is about to be trained, with the encoder and the teacher that it learns from."""

    sigma: SigmaModel
    encoder: Encoder
    teacher: Teacher


def parts_from_base(base: Base, profile: Profile) -> ModelParts:
    """A `tiny` model on a base, identifier tokens added. It takes over the base's backbone."""
    encoder = base.encoder
    teacher = base.teacher
    # The encoder keeps the tokenizer without identifier tokens: a query that spells one must stay
    # plain text to it.
    tokenizer = copy.deepcopy(base.tokenizer)
    extend_vocabulary(base.backbone, tokenizer, profile)
    sigma = SigmaModel(base.backbone, tokenizer, ImagePreprocessor.tiny(base.size), profile)
    return ModelParts(sigma.to(default_device()), encoder, teacher)


def pretrained_model(profile: Profile) -> SigmaModel:
    """A `qwen-*` model from pretrained weights, identifier tokens added.

    Its profile has the revision of the weights. `RefuseToStartError` for a profile that names no
    weights, or a folder that does not hold all of such a model.
    """
    if profile.model is None:
        raise RefuseToStartError(
            f"profile {profile.name} names no pretrained weights; use one of the qwen profiles"
        )
    snapshot = open_snapshot(profile.model, "model")
    require_kind(snapshot.folder, Qwen2_5_VLForConditionalGeneration)
    profile = replace(profile, model=snapshot.source)
    device = default_device()
    tokenizer = load_tokenizer(snapshot.folder)
    backbone = pretrained_backbone(snapshot.folder, torch.float32)
    extend_vocabulary(backbone, tokenizer, profile)
    preprocessor = ImagePreprocessor.pretrained(
        snapshot.folder, profile.min_pixels, profile.max_pixels
    )
    return SigmaModel(backbone, tokenizer, preprocessor, profile).to(device)


def open_teacher(profile: Profile) -> tuple[Callable[[], Teacher], str]:
    """What loads the teacher of a `qwen-*` profile, and the source of it with its revision.

    Only alignment needs it, hours later; a wrong name or folder is told at once.
    """
    if profile.teacher is None:
        raise RefuseToStartError(
            f"profile {profile.name} names no teacher, which soft labels come from; add one with "
            "--teacher or in the profile's file"
        )
    snapshot = open_snapshot(profile.teacher, "teacher", has_code=profile.trust_remote_code)
    if profile.trust_remote_code:
        return lambda: JinaTeacher.load(snapshot.folder), snapshot.source
    require_reranker(snapshot.folder)
    return lambda: RerankerTeacher.load(snapshot.folder), snapshot.source
