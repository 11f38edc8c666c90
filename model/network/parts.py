"""Model parts: a model before its training, made from a base or from pretrained weights."""

import copy
from dataclasses import dataclass

import torch

from model.network.backbone import pretrained_backbone
from model.network.base import Base
from model.network.encoder import Encoder
from model.network.inputs import ImagePreprocessor
from model.network.jina import JinaEncoder, JinaTeacher
from model.network.profiles import Profile
from model.network.sigma import SigmaModel, extend_vocabulary
from model.network.teacher import Teacher
from model.network.tokenizer import load_tokenizer
from schemas.errors import RefuseToStartError


@dataclass(frozen=True, slots=True)
class ModelParts:
    """A model that is about to be trained, with the encoder and the teacher that it learns from."""

    sigma: SigmaModel
    encoder: Encoder
    teacher: Teacher


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def pretrained_parts(profile: Profile, encoder: Encoder | None = None) -> ModelParts:
    """A `qwen-*` model from pretrained weights, with the paper's teacher.

    The encoder is the one given, or else the paper's.
    `RefuseToStartError` for a profile that names no pretrained weights.
    """
    if profile.model is None or profile.encoder is None or profile.teacher is None:
        raise RefuseToStartError(
            f"profile {profile.name} names no pretrained weights; use one of the qwen profiles"
        )
    device = default_device()
    tokenizer = load_tokenizer(profile.model)
    backbone = pretrained_backbone(profile.model, torch.float32)
    extend_vocabulary(backbone, tokenizer, profile)
    preprocessor = ImagePreprocessor.pretrained(profile.model)
    sigma = SigmaModel(backbone, tokenizer, preprocessor, profile)
    return ModelParts(
        sigma.to(device),
        encoder or JinaEncoder.load(profile.encoder, width=profile.embedding_width),
        JinaTeacher.load(profile.teacher),
    )
