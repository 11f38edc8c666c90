"""The reader of pretrained encoders: from a hub name or a folder to the encoder in it.

A folder's `config.json` says by `model_type` which family its model is of.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers.utils import logging as transformers_logging

from model.network.encoders.clip import ClipTowers
from model.network.encoders.conse import ABOUT as CONSE_ABOUT
from model.network.encoders.conse import NAME as CONSE
from model.network.encoders.conse import open_packages, read_conse
from model.network.encoders.jina_clip import JinaClipTowers
from model.network.encoders.openclip import CONFIG as OPEN_CLIP_CONFIG
from model.network.encoders.openclip import OpenClipTowers
from model.network.encoders.pretrained import EncoderFiles, PretrainedEncoder, Towers
from model.network.encoders.siglip import SiglipTowers
from model.network.hub import loading
from schemas.errors import RefuseToStartError, UsageError

# By `model_type` of config.json.
FAMILIES: dict[str, Callable[[Path], Towers]] = {
    "clip": ClipTowers.load,
    "siglip": SiglipTowers.load,
    "siglip2": SiglipTowers.load_flexible,
    "jina_clip": JinaClipTowers.load,
}

# Family of a folder without a config.json that says one.
OPEN_CLIP = "open_clip"

# Files that describe a model or its tokenizer.
_DESCRIPTIONS = ("*.json", "*.txt", "*.model")

# Weights in the order of preference: a pickle is read only where nothing else is, and only its
# tensors.
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")

# A hub name, with or without the revision that pins it.
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")

_CONFIG = "config.json"

# Loading would print a progress bar of its own to the terminal, between ours.
transformers_logging.disable_progress_bar()


def open_encoder(source: str) -> PretrainedEncoder:
    """Read an encoder by a hub name, best with a revision (`owner/name@revision`), or a folder.

    `efficientnet-minilm` is the one whose weights come in packages of the registry.

    `UsageError` for what is neither, `RetryLaterError` when the hub is out of reach and
    `RefuseToStartError` when the folder holds no such model.
    """
    if source == CONSE:
        return open_packages()
    folder = Path(source).expanduser()
    if folder.is_dir():
        return read_encoder(folder.absolute(), str(folder.absolute()))
    name = _HUB_NAME.fullmatch(source)
    if name is None:
        raise UsageError(
            f"the encoder must be {CONSE}, a folder, or a model of the hub such as "
            f"google/siglip2-base-patch16-256@REVISION, got {source!r}; see docs/encoders.md"
        )
    snapshot = _download(name[1], name[2])
    # The hub names a snapshot's folder by its commit: the revision is pinned from here on.
    return read_encoder(snapshot, f"{name[1]}@{snapshot.name}")


def read_encoder(folder: Path, source: str) -> PretrainedEncoder:
    """Read an encoder from a folder; `source` is what its checkpoints say that it came from."""
    if (folder / CONSE_ABOUT).is_file():
        return read_conse(folder, source)
    family = family_of(folder)
    if family == OPEN_CLIP:
        towers: Towers = OpenClipTowers.load(folder)
    else:
        towers = FAMILIES[family](folder)
    return PretrainedEncoder(towers, EncoderFiles(source, folder, model_files(folder, family)))


def family_of(folder: Path) -> str:
    """Which family a folder's model is of; `RefuseToStartError` for none of those known."""
    kind = _model_type(folder)
    plain = kind in FAMILIES and model_files(folder, kind) != _described(folder)
    if plain:
        return kind
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return OPEN_CLIP
    if kind in FAMILIES:
        raise RefuseToStartError(
            f"{folder} must hold the weights of its model, as {' or '.join(_WEIGHTS)}, got none; "
            "give the complete folder"
        )
    raise RefuseToStartError(
        f"{folder} must hold a model of type {', '.join(FAMILIES)}, or one of OpenCLIP with an "
        f"{OPEN_CLIP_CONFIG}, got {kind or 'none'}; see docs/encoders.md for those that work"
    )


def model_files(folder: Path, family: str) -> tuple[str, ...]:
    """Names of the files of a folder that its model is read from, sorted."""
    for pattern in _WEIGHTS:
        weights = [path.name for path in folder.glob(pattern) if path.is_file()]
        # One repository may hold the same weights twice, once for each library.
        own = [name for name in weights if name.startswith("open_clip_") == (family == OPEN_CLIP)]
        chosen = own or (weights if family == OPEN_CLIP else [])
        if chosen:
            return tuple(sorted((*_described(folder), *chosen)))
    return _described(folder)


def _described(folder: Path) -> tuple[str, ...]:
    names = []
    for pattern in _DESCRIPTIONS:
        names += [path.name for path in folder.glob(pattern) if path.is_file()]
    return tuple(sorted(names))


def _model_type(folder: Path) -> str:
    try:
        document = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        return str(document.get("model_type") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _download(name: str, revision: str | None) -> Path:
    """A snapshot of a model of the hub, from the cache where it is there."""
    wanted = [*_DESCRIPTIONS, _WEIGHTS[0]]
    with loading(f"{name}@{revision}" if revision else name):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        if not any(folder.glob(_WEIGHTS[0])):
            rest = list(_WEIGHTS[1:])
            folder = Path(snapshot_download(name, revision=folder.name, allow_patterns=rest))
    return folder
