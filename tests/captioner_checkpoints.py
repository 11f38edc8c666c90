"""Small random captioners in real classes: a Qwen2.5-VL that is asked, and a BLIP that is not."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor

from tests.vl_checkpoints import qwen

# As the published one, without the system's turn.
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in "
    "message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORDS = ["a", "small", "red", "circle", "blue", "square", "on", "navy", "large", "star", "dog"]


def talking_qwen(folder: Path) -> Path:
    """A Qwen2.5-VL with its processor and a chat template."""
    qwen(folder, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=9 * 28 * 28),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=_CHAT,
    )
    processor.save_pretrained(folder)
    return folder


def blip(folder: Path) -> Path:
    """A BLIP, which continues an empty text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]"]
    vocabulary = {word: number for number, word in enumerate([*special, *_WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[DEC]",
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **sizes,
            "vocab_size": len(vocabulary),
            "num_hidden_layers": 2,
            "encoder_hidden_size": 32,
            "projection_dim": 16,
            "pad_token_id": 0,
            "bos_token_id": 4,
            "sep_token_id": 3,
            "eos_token_id": 3,
        },
        vision_config={**sizes, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(5)
    model = BlipForConditionalGeneration(config)
    with torch.no_grad():
        # Fresh weights hardly let the text depend on the picture.
        for name, value in model.named_parameters():
            if value.ndim > 1 and "crossattention" in name:
                value.mul_(3000)
    model.save_pretrained(folder)
    picture = BlipImageProcessor(size={"height": 32, "width": 32})
    BlipProcessor(picture, tokenizer).save_pretrained(folder)
    return folder
