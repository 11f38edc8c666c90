"""The checkpoint: all that rebuilds one generation's model, and checks that it fits together.

In its folder: `checkpoint.json`, the codebook, `backbone/`, `tokenizer/`, `head.safetensors`,
`digests.json`, `processor/` for pretrained weights, `projector.safetensors` where the model reads
vectors, `query-head.safetensors` where it gives those of queries itself, `querybank.safetensors`
where nearness to any text counts, `sketch.safetensors`; and the encoder:
`encoder.safetensors` with `encoder-tokenizer/` for that of a base, `encoder/` with digests of its
own for a pretrained one.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from model.identifiers.codebook import Codebook
from model.network.checkpoint_description import (
    ABOUT,
    CheckpointDescription,
    read_description,
)
from model.network.encoder import Encoder, SmallEncoder, TwoTower
from model.network.encoders.kept import KeptEncoder, keep_encoder, read_kept
from model.network.encoders.reader import open_encoder
from model.network.file_digests import check_digests, write_digests
from model.network.hub import open_snapshot, quietly
from model.network.inputs import ImagePreprocessor
from model.network.jina import JinaEncoder
from model.network.language_half import AnsweringBackbone, can_answer
from model.network.precision import default_device, number_format, require_attention
from model.network.profiles import Profile
from model.network.query_head import QueryHeadEncoder
from model.network.querybank import Querybank
from model.network.sigma import SigmaModel
from model.network.sketch import Sketch
from model.network.tokenizer import load_tokenizer
from model.network.weights_io import load_module, save_module
from schemas.errors import RefuseToStartError
from schemas.training_record import KEPT_ENCODER, TrainingRecord

_TOKENIZER = "tokenizer"
_BACKBONE = "backbone"
_HEAD = "head.safetensors"
_PROJECTOR = "projector.safetensors"
_QUERY_HEAD = "query-head.safetensors"
_QUERYBANK = "querybank.safetensors"
_SKETCH = "sketch.safetensors"
_PROCESSOR = "processor"
_TOWERS = "encoder.safetensors"
_ENCODER_TOKENIZER = "encoder-tokenizer"

# Folder of a save that is not complete: it is thrown away.
_WRITING = ".writing"

# Folder of a complete save that is not in place yet: `recover_checkpoint` finishes it.
_WRITTEN = ".written"

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model with its codebook and encoder, and the record of how it was trained."""

    sigma: SigmaModel
    codebook: Codebook
    encoder: Encoder
    """A `QueryHeadEncoder` in a checkpoint with a query head that was loaded for queries alone."""
    record: TrainingRecord = TrainingRecord()
    querybank: Querybank | None = None
    """None where its texts are too few, or nothing is gained by it."""
    sketch: Sketch | None = None
    """None before the last stage."""


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint, whole or not at all.

    A save that is cut short while writing leaves the old checkpoint; one that is cut short while
    moving the new files into place is finished by `recover_checkpoint`.
    """
    recover_checkpoint(folder)
    writing = folder / _WRITING
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    _write(checkpoint, writing)
    if isinstance(checkpoint.encoder, KeptEncoder):
        # Before the files that name it. It never changes, so the save of a later stage finds it.
        keep_encoder(checkpoint.encoder, folder / KEPT_ENCODER)
    writing.replace(folder / _WRITTEN)
    recover_checkpoint(folder)


def recover_checkpoint(folder: Path) -> None:
    """Finish a save whose process died after all was written; else do nothing."""
    written = folder / _WRITTEN
    if not written.is_dir():
        return
    # `checkpoint.json` moves last: False sorts before True.
    for path in sorted(written.iterdir(), key=lambda path: path.name == ABOUT):
        place = folder / path.name
        if place.is_dir():
            shutil.rmtree(place)
        path.replace(place)
    written.rmdir()


def _write(checkpoint: Checkpoint, folder: Path) -> None:
    sigma = checkpoint.sigma
    encoder = checkpoint.encoder
    checkpoint.codebook.save(folder)
    sigma.tokenizer.save_pretrained(str(folder / _TOKENIZER))
    sigma.backbone.save_pretrained(str(folder / _BACKBONE))
    sigma.preprocessor.save(folder / _PROCESSOR)
    save_module(sigma.head, folder / _HEAD)
    if sigma.projector is not None:
        save_module(sigma.projector, folder / _PROJECTOR)
    if sigma.query_head is not None:
        save_module(sigma.query_head, folder / _QUERY_HEAD)
    bank = checkpoint.querybank
    if bank is not None:
        bank.save(folder / _QUERYBANK)
    if checkpoint.sketch is not None:
        checkpoint.sketch.save(folder / _SKETCH)
    if isinstance(encoder, SmallEncoder):
        save_module(encoder.towers, folder / _TOWERS)
        encoder.tokenizer.save_pretrained(str(folder / _ENCODER_TOKENIZER))
    description = CheckpointDescription(
        profile=sigma.profile,
        codebook=checkpoint.codebook.version,
        towers_width=encoder.width if isinstance(encoder, SmallEncoder) else None,
        jina_source=encoder.source if isinstance(encoder, JinaEncoder) else None,
        kept_source=encoder.source if isinstance(encoder, KeptEncoder) else None,
        record=checkpoint.record,
        vectors=None if sigma.projector is None else sigma.projector.reading,
        query_space=None if sigma.query_head is None else sigma.query_head.space,
        querybank=None if bank is None else bank.numbers(),
        sketched=checkpoint.sketch is not None,
    )
    text = json.dumps(description.to_json(), indent=2) + "\n"
    (folder / ABOUT).write_text(text, encoding="utf-8")
    write_digests(folder)


def load_record(folder: Path) -> TrainingRecord:
    """How the model of a checkpoint was trained.

    `RefuseToStartError` when `checkpoint.json` is missing, damaged or of another format.
    """
    return read_description(folder).record


def load_checkpoint(
    folder: Path, codebook: str | None = None, *, answering: bool = False, for_queries: bool = False
) -> Checkpoint:
    """Read a checkpoint.

    The weights are float32, to be trained; with `answering` the backbone's are in the profile's
    number format, which takes half of the memory on a GPU. With `for_queries` the backbone's vision
    tower is loaded when it is needed, and no encoder where the model has a query head: images
    cannot be embedded then.

    `RefuseToStartError` when files are missing, damaged or of another format, or when its codebook
    is another than its own or than the version `codebook`.
    """
    description = read_description(folder)
    book = _checked_codebook(folder, description, codebook)
    check_digests(folder)
    sigma = _load_sigma(folder, description, answering, for_queries)
    head = sigma.query_head
    encoder: Encoder
    if for_queries and head is not None:
        encoder = QueryHeadEncoder(sigma, head)
    else:
        encoder = _load_encoder(folder, description, book.width, for_queries)
    if encoder.width != book.width:
        raise RefuseToStartError(
            f"the encoder of checkpoint {folder} must be {book.width} wide as its codebook is, "
            f"got {encoder.width}; restore the folder or retrain"
        )
    bank = None
    if description.querybank is not None:
        bank = Querybank.load(folder / _QUERYBANK, description.querybank, book.width)
    sketch = Sketch.load(folder / _SKETCH, book.width) if description.sketched else None
    return Checkpoint(sigma, book, encoder, description.record, bank, sketch)


def load_sigma(folder: Path, codebook: str | None = None, *, answering: bool = False) -> SigmaModel:
    """Read the model of a checkpoint alone, for those who need no encoder, which may be larger.

    The same arguments and errors as `load_checkpoint`.
    """
    description = read_description(folder)
    _checked_codebook(folder, description, codebook)
    check_digests(folder)
    return _load_sigma(folder, description, answering)


def _checked_codebook(
    folder: Path, description: CheckpointDescription, wanted: str | None
) -> Codebook:
    book = Codebook.load(folder)
    # Its own, in case a file was exchanged; and the caller's, in case the whole folder was.
    for expected in (description.codebook, wanted):
        if expected is not None and expected != book.version:
            raise RefuseToStartError(
                f"the codebook of checkpoint {folder} must be {expected}, got {book.version}; "
                "restore the folder or retrain"
            )
    return book


def _load_sigma(
    folder: Path, description: CheckpointDescription, answering: bool, for_queries: bool = False
) -> SigmaModel:
    own_profile = description.profile
    tokenizer = load_tokenizer(folder / _TOKENIZER, answering=for_queries)
    dtype = number_format(own_profile.compute, default_device()) if answering else torch.float32
    attention = require_attention(own_profile.compute)
    backbone = _load_backbone(folder / _BACKBONE, dtype, attention, for_queries)
    sigma = SigmaModel(backbone, tokenizer, _preprocessor_of(folder, own_profile), own_profile)
    load_module(sigma.head, folder / _HEAD)
    if description.vectors is not None:
        load_module(sigma.add_projector(description.vectors), folder / _PROJECTOR)
    if description.query_space is not None:
        load_module(sigma.add_query_head(description.query_space), folder / _QUERY_HEAD)
    return _ready(sigma)


def _load_backbone(folder: Path, dtype: torch.dtype, attention: str, for_queries: bool) -> Any:
    """The class of `transformers`, or what queries need of it, where that can be computed here."""
    try:
        if for_queries and can_answer(folder, attention):
            return AnsweringBackbone.read(folder, dtype)
        from transformers import Qwen2_5_VLForConditionalGeneration

        with quietly():
            backbone = Qwen2_5_VLForConditionalGeneration.from_pretrained(str(folder), dtype=dtype)
        backbone.set_attn_implementation(attention)
        return backbone
    except Exception as error:  # damaged weights raise safetensors' and json's own types
        raise RefuseToStartError(
            f"backbone {folder} cannot be read ({error}); restore it or train again"
        ) from error


def _preprocessor_of(folder: Path, profile: Profile) -> ImagePreprocessor:
    if profile.tiny is not None:
        return ImagePreprocessor.tiny(profile.tiny)
    own = folder / _PROCESSOR
    if not own.is_dir():  # of a version that kept none
        own = open_snapshot(str(profile.model), "model").folder
    return ImagePreprocessor.pretrained(own, profile.min_pixels, profile.max_pixels)


def _load_encoder(
    folder: Path, description: CheckpointDescription, width: int, for_queries: bool
) -> Encoder:
    """The encoder; `width` is that of the codebook, which an encoder may be cut to."""
    profile = description.profile
    if description.kept_source is not None:
        return read_kept(folder / KEPT_ENCODER, description.kept_source, width)
    if description.jina_source is not None:
        if not profile.trust_remote_code:
            return open_encoder(description.jina_source, width)
        return JinaEncoder.load(description.jina_source, width=width)
    if description.towers_width is None or profile.tiny is None:
        raise RefuseToStartError(
            f"checkpoint {folder} has a small encoder but no size; restore the folder or retrain"
        )
    tokenizer = load_tokenizer(folder / _ENCODER_TOKENIZER, answering=for_queries)
    towers = TwoTower(len(tokenizer), description.towers_width)
    load_module(towers, folder / _TOWERS)
    side_px = profile.tiny.image_px
    return SmallEncoder(_ready(towers), tokenizer, side_px, profile.max_text_tokens)


def _ready(module: M) -> M:
    """The module on its device, in evaluation mode."""
    return module.to(default_device()).eval()
