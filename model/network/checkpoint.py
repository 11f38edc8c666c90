"""The checkpoint: all that rebuilds one generation's model, and the checks that it belongs together."""

import copy
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from model.identifiers.codebook import Codebook
from model.network.backbone import ImagePreprocessor, pretrained_backbone
from model.network.base import Base
from model.network.encoder import Encoder, SmallEncoder, TwoTower
from model.network.jina import JinaEncoder, JinaTeacher
from model.network.profiles import PROFILES, Profile, TinySize, profile
from model.network.sigma import SigmaModel, extend_vocabulary
from model.network.teacher import Teacher
from model.network.tokenizer import load_tokenizer
from model.network.weights_io import load_module, save_module
from schemas.errors import RefuseToStartError
from schemas.identifiers import IdentifierShape
from schemas.training_record import TrainingRecord

ABOUT, FORMAT = "checkpoint.json", 1
_WRITING, _WRITTEN = ".writing", ".written"

_MODEL_KEYS = ("format", "shape", "codebook", "encoder", "size")
"""Keys of `checkpoint.json` that describe the model; the others belong to the training record."""

M = TypeVar("M", bound=nn.Module)

# Loading prints a bar of its own to the terminal, between ours.
transformers_logging.disable_progress_bar()


@dataclass(frozen=True, slots=True)
class ModelParts:
    """A model that is about to be trained, with the encoder and teacher it learns from."""

    sigma: SigmaModel
    encoder: Encoder
    teacher: Teacher


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with its codebook and encoder, and the record of how it was trained."""

    sigma: SigmaModel
    codebook: Codebook
    encoder: Encoder
    record: TrainingRecord = TrainingRecord()


def device() -> torch.device:
    """A GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def parts_from_base(base: Base, chosen: Profile) -> ModelParts:
    """A `tiny` model on a base, identifier tokens added. Takes the base's backbone over."""
    encoder, teacher = base.encoder, base.teacher
    # The encoder keeps the tokenizer without identifier tokens: a query that spells one must stay plain text to it.
    tokenizer = copy.deepcopy(base.tokenizer)
    extend_vocabulary(base.backbone, tokenizer, chosen)
    sigma = SigmaModel(base.backbone, tokenizer, ImagePreprocessor.tiny(base.size), chosen)
    return ModelParts(sigma.to(device()), encoder, teacher)


def pretrained_parts(chosen: Profile) -> ModelParts:
    """A `qwen-*` model from pretrained weights, with the paper's encoder and teacher."""
    if chosen.model is None or chosen.encoder is None or chosen.teacher is None:
        raise RefuseToStartError(
            f"profile {chosen.name} names no pretrained weights; use one of the qwen profiles"
        )
    kind = torch.bfloat16 if device().type == "cuda" else torch.float32
    tokenizer, backbone = load_tokenizer(chosen.model), pretrained_backbone(chosen.model, kind)
    extend_vocabulary(backbone, tokenizer, chosen)
    sigma = SigmaModel(backbone, tokenizer, ImagePreprocessor.pretrained(chosen.model), chosen)
    return ModelParts(
        sigma.to(device()),
        JinaEncoder(chosen.encoder, width=chosen.embedding_width),
        JinaTeacher(chosen.teacher),
    )


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write everything beside what is there, then put it in place: a save that is cut short leaves the old checkpoint, and one
    that is cut short while moving is finished by `recover_checkpoint`."""
    recover_checkpoint(folder)
    aside = folder / _WRITING
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _write(checkpoint, aside)
    aside.replace(folder / _WRITTEN)
    recover_checkpoint(folder)


def recover_checkpoint(folder: Path) -> None:
    """Finish a save whose process died after all was written. `checkpoint.json` moves last."""
    written = folder / _WRITTEN
    if not written.is_dir():
        return
    for part in sorted(written.iterdir(), key=lambda path: path.name == ABOUT):
        place = folder / part.name
        if place.is_dir():
            shutil.rmtree(place)
        part.replace(place)
    written.rmdir()


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    sigma = checkpoint.sigma
    checkpoint.codebook.save(folder)
    sigma.tokenizer.save_pretrained(str(folder / "tokenizer"))
    sigma.backbone.save_pretrained(str(folder / "backbone"))
    save_module(sigma.head, folder / "head.safetensors")
    small = isinstance(checkpoint.encoder, SmallEncoder)
    if isinstance(checkpoint.encoder, SmallEncoder):
        save_module(checkpoint.encoder.towers, folder / "encoder.safetensors")
        checkpoint.encoder.tokenizer.save_pretrained(str(folder / "encoder-tokenizer"))
    chosen = sigma.profile
    about = checkpoint.record.to_json() | {
        "format": FORMAT,
        "profile": chosen.name,
        "shape": asdict(chosen.shape),
        "codebook": checkpoint.codebook.version,
        "encoder": {"kind": "small", "width": checkpoint.encoder.width}
        if small
        else {"kind": "jina", "source": chosen.encoder},
        "size": None if chosen.tiny is None else asdict(chosen.tiny),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load_record(folder: Path) -> TrainingRecord:
    """How the model of a checkpoint was trained; refuses what `describe_checkpoint` refuses."""
    return _record_of(describe_checkpoint(folder))


def _record_of(about: dict[str, Any]) -> TrainingRecord:
    return TrainingRecord.from_json(
        {name: value for name, value in about.items() if name not in _MODEL_KEYS}
    )


def describe_checkpoint(folder: Path) -> dict[str, Any]:
    """What `checkpoint.json` says; `RefuseToStartError` when there is none or of another format."""
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefuseToStartError(
            f"{folder} holds no readable checkpoint ({error}); restore it or train again"
        ) from error
    if about.get("format") != FORMAT or about.get("profile") not in PROFILES:
        found = f"format {about.get('format')}, profile {about.get('profile')}"
        raise RefuseToStartError(
            f"checkpoint {folder} has {found}; this version reads format {FORMAT} of {', '.join(PROFILES)}"
        )
    return about


def load_checkpoint(folder: Path, codebook: str | None = None) -> Checkpoint:
    """Read a checkpoint; refuses one beside another codebook than its own, or than `codebook` (a version) when given."""
    about = describe_checkpoint(folder)
    book = Codebook.load(folder)
    for wanted in (about["codebook"], codebook):
        if wanted is not None and wanted != book.version:
            raise RefuseToStartError(
                f"checkpoint {folder} holds codebook {book.version}, {wanted} is expected; restore the folder or retrain"
            )
    shape = IdentifierShape(
        codes=tuple(about["shape"]["codes"]), suffixes=int(about["shape"]["suffixes"])
    )
    size = None if about["size"] is None else TinySize(**about["size"])
    chosen = replace(profile(about["profile"]), shape=shape, tiny=size)
    tokenizer = load_tokenizer(folder / "tokenizer")
    backbone = _backbone(folder / "backbone")
    inputs = (
        ImagePreprocessor.pretrained(str(chosen.model))
        if size is None
        else ImagePreprocessor.tiny(size)
    )
    sigma = SigmaModel(backbone, tokenizer, inputs, chosen)
    load_module(sigma.head, folder / "head.safetensors")
    encoder = _encoder(folder, about, chosen)
    if encoder.width != book.width:
        raise RefuseToStartError(
            f"checkpoint {folder}: encoder is {encoder.width} wide, codebook {book.width}; restore the folder or retrain"
        )
    return Checkpoint(
        sigma=_placed(sigma), codebook=book, encoder=encoder, record=_record_of(about)
    )


def _backbone(folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    try:
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(str(folder))
    except Exception as error:  # damaged weights raise safetensors' and json's own types
        raise RefuseToStartError(
            f"backbone {folder} cannot be read ({error}); restore it or train again"
        ) from error


def _encoder(folder: Path, about: dict[str, Any], chosen: Profile) -> Encoder:
    if about["encoder"]["kind"] == "jina":
        return JinaEncoder(about["encoder"]["source"], width=chosen.embedding_width)
    if chosen.tiny is None:
        raise RefuseToStartError(
            f"checkpoint {folder} has a small encoder but no size; restore the folder or retrain"
        )
    tokenizer = load_tokenizer(folder / "encoder-tokenizer")
    towers = TwoTower(len(tokenizer), int(about["encoder"]["width"]))
    load_module(towers, folder / "encoder.safetensors")
    return SmallEncoder(_placed(towers), tokenizer, chosen.tiny.image_px, chosen.max_text_tokens)


def _placed(module: M) -> M:
    return module.to(device()).eval()
