"""Export: the text decoder of a model as a `Qwen2ForCausalLM` folder, which other decoding engines can read.

Images stay behind. In text alone the three position axes of Qwen2.5-VL are equal and its rotary embedding is the plain
one, so its language half with the output layer is Qwen2 to the letter.
"""

import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2Config

from model.network.sigma import SigmaModel
from schemas.errors import WorkFailedError

WEIGHTS = "model.safetensors"

_DIGEST = re.compile("[0-9a-f]{12}")

_COPIED = (
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


def export_text_decoder(sigma: SigmaModel, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`, in the model's own dtype; token ids are those of the model's tokenizer."""
    text: Any = sigma.backbone.config.text_config
    tables: tuple[Any, Any] = (sigma.backbone.get_input_embeddings(), sigma.backbone.lm_head)
    tied = tables[0].weight is tables[1].weight
    weights: dict[str, Tensor] = {
        f"model.{name}": value
        for name, value in sigma.backbone.model.language_model.state_dict().items()
    }
    if not tied:
        weights["lm_head.weight"] = tables[1].weight
    config = Qwen2Config(
        **{name: getattr(text, name) for name in _COPIED},
        rope_parameters={
            name: value
            for name, value in text.rope_parameters.items()
            if name not in ("mrope_section", "type")
        },
        tie_word_embeddings=tied,
        architectures=["Qwen2ForCausalLM"],
        dtype=tables[0].weight.dtype,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    config.save_pretrained(str(folder))


def ensure_export(sigma: SigmaModel, cache: Path, name: str) -> Path:
    """The folder of an export below `cache`, written when it is not there yet.

    It is called by `name` and by a digest of the weights, so that an export of other weights is not taken for this one. It
    appears whole or not at all, also when two processes write it at once.
    """
    folder = cache / f"{name}-{_digest(sigma)}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=cache))
    try:
        export_text_decoder(sigma, aside)
        aside.rename(folder)
    except (OSError, SafetensorError) as error:
        if not folder.is_dir():
            raise WorkFailedError(
                f"the text decoder cannot be exported to {folder} ({error}); make room or permit it"
            ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def delete_stale_exports(
    cache: Path, keep: Collection[str], *, older_than_s: float = 3600.0
) -> list[str]:
    """Delete the exports below `cache` that are called by no name in `keep`; what is young may be about to be read by another process.

    Returns the names of the folders that are gone.
    """
    gone = []
    for folder in sorted(cache.iterdir()) if cache.is_dir() else []:
        name, _, digest = folder.name.lstrip(".").partition(".")[0].rpartition("-")
        if (
            _DIGEST.fullmatch(digest)
            and name not in keep
            and time.time() - folder.stat().st_mtime > older_than_s
        ):
            shutil.rmtree(folder, ignore_errors=True)
            gone.append(folder.name)
    return gone


def _digest(sigma: SigmaModel) -> str:
    """A short digest of the text decoder's norms and biases: few numbers, all of which change in every training."""
    digest = hashlib.sha256()
    for name, value in sorted(sigma.backbone.model.language_model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        if value.ndim == 1:
            digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]
