"""Small random checkpoints of the real encoder classes, as the libraries that own them save them.

Each has its own sizes, so that a reader that takes a number from elsewhere is found out.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    JinaEmbeddingsV3Config,
    JinaEmbeddingsV3Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
)

WORDS = (
    "a photo of a red square on green grass",
    "two small blue circles, striped",
    "the large yellow star's outline!",
    "an orange heart beside a black cross",
)

LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
TOWER = {**LAYERS, "num_hidden_layers": 1}


def clip(folder: Path, side_px: int = 32) -> Path:
    """A small `CLIPModel`, with a picture processor that crops."""
    torch.manual_seed(1)
    tokenizer = CLIPTokenizer(**_clip_vocabulary())
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 20}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**TOWER, "image_size": side_px, "patch_size": side_px // 4}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    with torch.no_grad():
        model.logit_scale.fill_(3.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": side_px}, crop_size=side_px)
    processor.save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """A `SiglipModel` of 28 px with its sentencepiece tokenizer."""
    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = SiglipTokenizer(
        vocab_file=str(_sentencepiece(folder)), model_max_length=16, model_input_names=["input_ids"]
    )
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = {**TOWER, "image_size": 28, "patch_size": 7}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    _save_siglip(model, folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def siglip2(folder: Path) -> Path:
    """A SigLIP 2 with a fixed resolution: the classes of SigLIP, a tokenizer of its own."""
    torch.manual_seed(3)
    tokenizer = _gemma_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 18}
    vision = {**TOWER, "image_size": 24, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    _save_siglip(model, folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def siglip2_flexible(folder: Path) -> Path:
    """A `Siglip2Model`, which takes pictures of any shape in at most 16 patches."""
    torch.manual_seed(4)
    tokenizer = _gemma_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 18}
    vision = {**TOWER, "num_patches": 16, "patch_size": 8}
    model = Siglip2Model(Siglip2Config(text_config=text, vision_config=vision))
    _save_siglip(model, folder)
    tokenizer.save_pretrained(folder)
    Siglip2ImageProcessor(max_num_patches=16, patch_size=8).save_pretrained(folder)
    return folder


def open_clip(folder: Path) -> Path:
    """A CLIP of `open_clip`, as its `push_to_hf_hub` saves one."""
    from open_clip.model import CLIP

    torch.manual_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": 24,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
    model = CLIP(**config)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
    preprocess |= {"resize_mode": "shortest"}
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    return folder


def jina_clip(folder: Path) -> Path:
    """A jina-clip-v2 in the published layout: EVA-02's names, one LoRA adapter on the texts."""
    torch.manual_seed(6)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _xlm_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
    vision = {
        "embed_dim": 32, "width": 32, "layers": 1, "head_width": 16, "mlp_ratio": 2.0,
        "image_size": 28, "patch_size": 7, "pt_hw_seq_len": 2, "intp_freq": True, "subln": True,
        "naive_swiglu": True, "rope_embeddings": True,
    }  # fmt: skip
    text = {
        "embed_dim": 32,
        "hf_model_name_or_path": "jinaai/jina-embeddings-v3",
        "default_lora_task": "retrieval.query",
        "hf_model_config_kwargs": {
            **sizes,
            "lora_adaptations": ["retrieval.query"],
            "lora_alpha": 4,
            "lora_rank": 2,
        },
    }
    config = {
        "model_type": "jina_clip",
        "add_projections": False,
        "vision_config": vision,
        "text_config": text,
    }
    (folder / "config.json").write_text(json.dumps(config))
    preprocessing = {
        "size": 28,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.2, 0.3],
        "resize_mode": "shortest",
        "interpolation": "bicubic",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    tensors = {**_eva_tensors(), **_jina_text_tensors(sizes)}
    tensors["logit_scale"] = torch.tensor(3.0)
    save_file(tensors, folder / "model.safetensors")
    return folder


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "clip": clip,
    "open_clip": open_clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "siglip2_flexible": siglip2_flexible,
    "jina_clip": jina_clip,
}


def _save_siglip(model: Any, folder: Path) -> None:
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
        model.logit_bias.fill_(-9.5)
    model.save_pretrained(folder)


def _clip_vocabulary() -> dict[str, Any]:
    """Characters and their ends of words, without merges: any text of them can be encoded."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {"vocab": {token: number for number, token in enumerate(tokens)}, "merges": []}


def _sentencepiece(folder: Path) -> Path:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([word.lower() for word in WORDS] * 4),
        model_writer=model,
        vocab_size=44,
        model_type="unigram",
        pad_id=2,
        bos_id=-1,
        eos_id=1,
        unk_id=0,
        minloglevel=2,
    )
    file = folder / "spiece.model"
    file.write_bytes(model.getvalue())
    return file


def _gemma_tokenizer() -> Any:
    own = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    letters = sorted(set("".join(WORDS).lower()) - {" "})
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    tokens = [*own, *bytes_, "▁", *letters]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return Siglip2Tokenizer(
        vocab=vocabulary,
        merges=[],
        padding_side="right",
        model_max_length=18,
        model_input_names=["input_ids"],
    )


def _xlm_tokenizer() -> PreTrainedTokenizerFast:
    own = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=own, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def _eva_tensors() -> dict[str, Tensor]:
    """Random weights of one block under the names of EVA-02's own code."""
    block = "blocks.0."
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 32),
        "pos_embed": (1, 17, 32),
        "patch_embed.proj.weight": (32, 3, 7, 7),
        "patch_embed.proj.bias": (32,),
        f"{block}attn.q_bias": (32,),
        f"{block}attn.v_bias": (32,),
        f"{block}mlp.w1.weight": (64, 32),
        f"{block}mlp.w1.bias": (64,),
        f"{block}mlp.w2.weight": (64, 32),
        f"{block}mlp.w2.bias": (64,),
        f"{block}mlp.w3.weight": (32, 64),
        f"{block}mlp.w3.bias": (32,),
        f"{block}attn.proj.weight": (32, 32),
        f"{block}attn.proj.bias": (32,),
        f"{block}mlp.ffn_ln.weight": (64,),
        f"{block}mlp.ffn_ln.bias": (64,),
        "rope.freqs_cos": (16, 16),
        "rope.freqs_sin": (16, 16),
    }
    for projection in ("q", "k", "v"):
        shapes[f"{block}attn.{projection}_proj.weight"] = (32, 32)
    for norm in (f"{block}norm1", f"{block}norm2", f"{block}attn.inner_attn_ln", "norm"):
        shapes[f"{norm}.weight"] = (32,)
        shapes[f"{norm}.bias"] = (32,)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensors[f"vision_model.{name}"] = torch.randn(shape) * 0.3
    return tensors


def _jina_text_tensors(sizes: dict[str, int]) -> dict[str, Tensor]:
    """A random text tower under the names of its own code, every matrix with an adapter."""
    model = JinaEmbeddingsV3Model(JinaEmbeddingsV3Config(**sizes), add_pooling_layer=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in range(sizes["num_hidden_layers"]):
        for kind in ("weight", "bias"):
            parts = [
                state.pop(f"layers.{layer}.self_attn.{name}_proj.{kind}")
                for name in ("q", "k", "v")
            ]
            state[f"layers.{layer}.mixer.Wqkv.{kind}"] = torch.cat(parts)
    renamed = {
        "embeddings.LayerNorm.": "emb_ln.",
        "layers.": "encoder.layers.",
        "self_attn.o_proj.": "mixer.out_proj.",
        "post_attention_layernorm.": "norm1.",
        "post_mlp_layernorm.": "norm2.",
    }
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        for after, before in renamed.items():
            name = name.replace(after, before)
        name = f"text_model.transformer.roberta.{name}"
        if value.ndim < 2:
            tensors[name] = value
            continue
        layer_name = name.removesuffix(".weight")
        outputs, inputs = value.shape
        first, second = (2, inputs), (outputs, 2)
        if layer_name.endswith("embeddings"):
            first, second = (outputs, 2), (2, inputs)
        tensors[f"{layer_name}.parametrizations.weight.original"] = value
        tensors[f"{layer_name}.parametrizations.weight.0.lora_A"] = torch.randn(1, *first) * 0.1
        tensors[f"{layer_name}.parametrizations.weight.0.lora_B"] = torch.randn(1, *second) * 0.1
    return tensors
