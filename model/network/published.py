"""Published shapes: the configurations of the backbones that profiles name, without their weights.

From the `config.json` of each repository. A plan of a training needs no more of a model.
"""

import json
from pathlib import Path

from transformers import Qwen2_5_VLConfig

from schemas.errors import RefuseToStartError, UsageError
from schemas.records import JsonObject

# (hidden, feed-forward, layers, heads, key-value heads, vocabulary, tied) of the language half.
_TEXT = {
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 11008, 36, 16, 2, 151_936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": (3584, 18944, 28, 28, 4, 152_064, False),
}

# Parameters of the encoders and teachers that profiles name, by the beginning of their names.
_PARAMETERS = {"jinaai/jina-embeddings-v4": 3.8e9, "jinaai/jina-reranker-m0": 2.4e9}


def known_parameters(source: str | None) -> float:
    """Parameters of an encoder or a teacher; 0 where they are not known."""
    names = [name for name in _PARAMETERS if (source or "").startswith(name)]
    return _PARAMETERS[names[0]] if names else 0.0


def backbone_config(
    source: str, *, layers: int | None = None, vision_layers: int | None = None
) -> Qwen2_5_VLConfig:
    """The configuration of a backbone by its hub name, or of a folder with a `config.json`.

    `layers` and `vision_layers` leave the rest of them out, for trials on small machines.
    `UsageError` for a name whose shape is not known, `RefuseToStartError` for a damaged folder.
    """
    name = source.partition("@")[0]
    if name in _TEXT:
        document = _published(name)
    elif (Path(source) / "config.json").is_file():
        document = _read(Path(source) / "config.json")
    else:
        raise UsageError(
            f"the shape of model {source} is not known; give a folder with its config.json, or one "
            f"of {', '.join(_TEXT)}"
        )
    text, vision = document["text_config"], document["vision_config"]
    if layers is not None:
        text |= {"num_hidden_layers": layers, "layer_types": None}
    if vision_layers is not None:
        vision |= {"depth": vision_layers, "fullatt_block_indexes": list(range(vision_layers))}
    return Qwen2_5_VLConfig.from_dict(document)


def _read(path: Path) -> JsonObject:
    try:
        document: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefuseToStartError(f"{path} cannot be read ({error}); restore it") from error
    return document


def _published(name: str) -> JsonObject:
    hidden, feed_forward, layers, heads, kv_heads, vocabulary, tied = _TEXT[name]
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": feed_forward,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 128_000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [16, 24, 24],
            },
            "bos_token_id": 151_643,
            "eos_token_id": 151_645,
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": hidden,
        },
        "image_token_id": 151_655,
        "video_token_id": 151_656,
        "vision_start_token_id": 151_652,
        "vision_end_token_id": 151_653,
        "tie_word_embeddings": tied,
    }
