"""Export: a model's text decoder as a `Qwen2ForCausalLM` folder, for other decoding engines.

The vision tower is left out. In text alone the three position axes of Qwen2.5-VL are equal and its
rotary embedding is the plain one, so its language half with the output layer is exactly a Qwen2.
"""

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.network.sigma import SigmaModel
from schemas.errors import WorkFailedError

if TYPE_CHECKING:
    from transformers import Qwen2Config

# The file name that `transformers` and vLLM look for.
WEIGHTS = "model.safetensors"

# Age in seconds at which an unused export is deleted.
#
# A younger one may be about to be read by another process.
STALE_AFTER_S = 3600.0

# Hexadecimal digits: 48 bits, far more than the few exports of one cache need.
_DIGEST_LENGTH = 12

_DIGEST = re.compile(f"[0-9a-f]{{{_DIGEST_LENGTH}}}")

# Fields of the text configuration that mean the same in `Qwen2Config`.
_CONFIG_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "attention_dropout",
    "initializer_range",
    "layer_types",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)

# Parameters of the rotary embedding that only the three position axes need.
_MULTIMODAL_ROPE_FIELDS = ("mrope_section", "type")


def export_text_decoder(sigma: SigmaModel, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` in the model's own dtype.

    Token ids are those of the model's tokenizer, identifier tokens included.
    """
    embedding: Any = sigma.backbone.get_input_embeddings()
    output: Any = sigma.backbone.lm_head
    tied = embedding.weight is output.weight
    weights: dict[str, Tensor] = {}
    for name, value in sigma.backbone.model.language_model.state_dict().items():
        weights[f"model.{name}"] = value.detach().cpu().contiguous()
    if not tied:
        weights["lm_head.weight"] = output.weight.detach().cpu().contiguous()
    config = _plain_config(sigma, tied=tied, dtype=embedding.weight.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _plain_config(sigma: SigmaModel, *, tied: bool, dtype: torch.dtype) -> "Qwen2Config":
    from transformers import Qwen2Config

    text: Any = sigma.backbone.config.text_config
    rope = dict(text.rope_parameters)
    for name in _MULTIMODAL_ROPE_FIELDS:
        rope.pop(name, None)
    fields = {name: getattr(text, name) for name in _CONFIG_FIELDS}
    return Qwen2Config(
        **fields,
        rope_parameters=rope,
        tie_word_embeddings=tied,
        architectures=["Qwen2ForCausalLM"],
        dtype=dtype,
    )


def ensure_export(sigma: SigmaModel, cache: Path, name: str) -> Path:
    """The folder of the model's export below `cache`, written when it is missing.

    The folder's name is `name` and a digest of the weights, so that an export of other weights is
    never taken for this one. It appears whole or not at all, also when two processes write it at
    once. `WorkFailedError` when it cannot be written.
    """
    folder = cache / f"{name}-{_digest(sigma)}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
    try:
        export_text_decoder(sigma, partial)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        # Another process may have renamed its own export to this folder first: then ours is not
        # needed.
        if not folder.is_dir():
            raise WorkFailedError(
                f"the text decoder cannot be exported to {folder} ({error}); "
                "free disk space there or allow writing"
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def delete_stale_exports(
    cache: Path, keep: Collection[str], *, older_than_s: float = STALE_AFTER_S
) -> list[str]:
    """Delete the exports below `cache`, half-written ones too, whose name is not in `keep`.

    Folders that no export made stay. Returns the names of the deleted folders.
    """
    if not cache.is_dir():
        return []
    deleted: list[str] = []
    for folder in sorted(cache.iterdir()):
        name = _export_name(folder)
        if name is None or name in keep:
            continue
        if time.time() - folder.stat().st_mtime > older_than_s:
            shutil.rmtree(folder, ignore_errors=True)
            deleted.append(folder.name)
    return deleted


def _export_name(folder: Path) -> str | None:
    """The name that an export was made with; None where no export made the folder.

    The folder is called `NAME-DIGEST`, and `.NAME-DIGEST.RANDOM` while it is written.
    """
    finished_name = folder.name.lstrip(".").partition(".")[0]
    name, _, digest = finished_name.rpartition("-")
    return name if _DIGEST.fullmatch(digest) else None


def _digest(sigma: SigmaModel) -> str:
    """A short digest of the text decoder's norms and biases.

    They are few numbers, and every training changes all of them.
    """
    digest = hashlib.sha256()
    for name, value in sorted(sigma.backbone.model.language_model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.ndim == 1:
            digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:_DIGEST_LENGTH]
