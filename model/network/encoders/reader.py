"""The reader of pretrained encoders: from a hub name or a folder to the encoder in it.

A folder's `config.json` says by `model_type` which family its model is of. A family is imported
when one of its models is read: some libraries take seconds of processor time to import.
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from model.network.encoders.pretrained import (
    PACKAGED_ABOUT,
    CuttableTowers,
    EncoderFiles,
    PretrainedEncoder,
    Towers,
)
from model.network.hub import DESCRIPTIONS, WEIGHTS, open_snapshot, read_config
from schemas.errors import RefuseToStartError
from schemas.settings import PACKAGED_ENCODER

# By `model_type` of config.json: a module beside this one, a class in it, and what reads a folder.
FAMILIES = {
    "clip": ("clip", "ClipTowers", "load"),
    "siglip": ("siglip", "SiglipTowers", "load"),
    "siglip2": ("siglip", "SiglipTowers", "load_flexible"),
    "jina_clip": ("jina_clip", "JinaClipTowers", "load"),
    "qwen2_5_vl": ("jina_v4", "JinaV4Towers", "load"),
}

# Family of a folder without a config.json that says one.
OPEN_CLIP = "open_clip"

# Describes the towers of a model of OpenCLIP and its preprocessing.
OPEN_CLIP_CONFIG = "open_clip_config.json"


def open_encoder(source: str, width: int | None = None) -> PretrainedEncoder:
    """Read an encoder by a hub name, best with a revision (`owner/name@revision`), or a folder.

    `efficientnet-minilm` is the one whose weights come in packages of the registry. `width`: of the
    vectors, where the encoder's may be cut.

    `UsageError` for what is neither, `RetryLaterError` when the hub is out of reach and
    `RefuseToStartError` when the folder holds no such model.
    """
    if source == PACKAGED_ENCODER:
        from model.network.encoders.conse import open_packages

        return open_packages()
    snapshot = open_snapshot(source, f"encoder, where it is not {PACKAGED_ENCODER},")
    return read_encoder(snapshot.folder, snapshot.source, width)


def read_encoder(folder: Path, source: str, width: int | None = None) -> PretrainedEncoder:
    """Read an encoder from a folder; `source` is what its checkpoints say that it came from."""
    if (folder / PACKAGED_ABOUT).is_file():
        from model.network.encoders.conse import read_conse

        return read_conse(folder, source)
    family = family_of(folder)
    towers = _towers_of(family)(folder)
    if isinstance(towers, CuttableTowers) and width is not None:
        towers.cut(width)
    return PretrainedEncoder(towers, EncoderFiles(source, folder, model_files(folder, family)))


def _towers_of(family: str) -> Callable[[Path], Towers]:
    """What reads a model of a family from a folder."""
    if family == OPEN_CLIP:
        from model.network.encoders.openclip import OpenClipTowers

        return OpenClipTowers.load
    module, name, reader = FAMILIES[family]
    towers = getattr(importlib.import_module(f"model.network.encoders.{module}"), name)
    read: Callable[[Path], Towers] = getattr(towers, reader)
    return read


def family_of(folder: Path) -> str:
    """Which family a folder's model is of; `RefuseToStartError` for none of those known."""
    kind = str(read_config(folder).get("model_type") or "")
    plain = kind in FAMILIES and model_files(folder, kind) != _described(folder)
    if plain:
        return kind
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return OPEN_CLIP
    if kind in FAMILIES:
        raise RefuseToStartError(
            f"{folder} must hold the weights of its model, as {' or '.join(WEIGHTS)}, got none; "
            "give the complete folder"
        )
    raise RefuseToStartError(
        f"{folder} must hold a model of type {', '.join(FAMILIES)}, or one of OpenCLIP with an "
        f"{OPEN_CLIP_CONFIG}, got {kind or 'none'}; see docs/encoders.md for those that work"
    )


def model_files(folder: Path, family: str) -> tuple[str, ...]:
    """Names of the files of a folder that its model is read from, sorted."""
    for pattern in WEIGHTS:
        weights = [path.name for path in folder.glob(pattern) if path.is_file()]
        # One repository may hold the same weights twice, once for each library.
        own = [name for name in weights if name.startswith("open_clip_") == (family == OPEN_CLIP)]
        chosen = own or (weights if family == OPEN_CLIP else [])
        if chosen:
            return tuple(sorted((*_described(folder), *chosen)))
    return _described(folder)


def _described(folder: Path) -> tuple[str, ...]:
    names = []
    for pattern in DESCRIPTIONS:
        names += [path.name for path in folder.glob(pattern) if path.is_file()]
    return tuple(sorted(names))
