"""Checkpoints of the true shape of Qwen2.5-VL-3B, and trainings that kill themselves."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from model.network.published import backbone_config
from model.network.tokenizer import (
    END,
    IMAGE,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    token_id,
    train_tokenizer,
)
from model.progress import quiet
from ops.cli.main import parser
from ops.cli.train import check, training_request
from tests import vl_checkpoints
from tests.integration.small_training import LENIENT, dying, tiny_services
from workers.trainer.request import TrainRequest
from workers.trainer.trainer import train

NAME = "Qwen/Qwen2.5-VL-3B-Instruct"

# As on a GPU: float32 masters, products in bfloat16, layers computed again, batches in parts.
PROFILE = """
base = "qwen-3b"
name = "shape"
max_pixels = 19600

[shape]
codes = [4, 3, 3, 2]
suffixes = 8

[compute]
dtype = "bfloat16"
micro_batch = 3
loader_workers = 0
lora_rank = {lora_rank}

[stages.memorize]
epochs = {epochs}
batch = {first}

[stages.comprehend]
epochs = {epochs}
batch = {batch}
rounds = 1

[stages.align]
epochs = {epochs}
batch = {batch}

[refresh.memorize]
epochs = 1
batch = {batch}

[refresh.comprehend]
epochs = 1
batch = {batch}
rounds = 1

[refresh.align]
epochs = 1
batch = {batch}
"""


def true_shape(folder: Path) -> Path:
    """A checkpoint with the published widths and heads, one layer in each half, in bfloat16.

    Its word table has the rows of a small tokenizer: 151,936 would be 0.3 of 0.45 billion weights,
    all of one kind.
    """
    tokenizer = small_tokenizer()
    true_backbone(tokenizer, len(tokenizer)).to(dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    processor = Qwen2VLImageProcessor(min_pixels=4 * 28 * 28, max_pixels=9 * 28 * 28)
    processor.save_pretrained(folder)
    return folder


def small_tokenizer() -> PreTrainedTokenizerBase:
    """One with the marks that the published one has."""
    tokenizer = train_tokenizer(vl_checkpoints.WORDS * 5, 400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    return tokenizer


def true_backbone(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Any:
    """The model with random weights, for a small tokenizer and so many rows of the word table."""
    config: Any = backbone_config(NAME, layers=1, vision_layers=1)
    config.text_config.vocab_size = vocabulary
    config.text_config.bos_token_id = None
    config.text_config.eos_token_id = token_id(tokenizer, END)
    config.text_config.pad_token_id = token_id(tokenizer, PAD)
    config.image_token_id = token_id(tokenizer, IMAGE)
    config.video_token_id = token_id(tokenizer, VIDEO)
    config.vision_start_token_id = token_id(tokenizer, VISION_START)
    config.vision_end_token_id = token_id(tokenizer, VISION_END)
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config)


def sources(
    root: Path, model: Path, epochs: int, batch: int, lora_rank: int = 0
) -> dict[str, Path]:
    """What a training is made of: both jina classes, small, beside a model."""
    file = root / "shape.toml"
    found = {
        "model": model,
        "encoder": vl_checkpoints.jina_v4(root / "encoder"),
        "teacher": vl_checkpoints.reranker(root / "teacher"),
        "profile": file,
    }
    # The first step of a stage warms up and changes nothing: each needs two.
    numbers = PROFILE.format(epochs=epochs, batch=batch, first=min(batch, 6), lora_rank=lora_rank)
    file.write_text(numbers, encoding="utf-8")
    return found


def asked(given: dict[str, Path], *more: str) -> TrainRequest:
    """The request of `sigma train` with those options, with gates that random pictures pass."""
    arguments = ["train", *more]
    for name, source in given.items():
        arguments += [f"--{name}", str(source)]
    options = parser().parse_args(arguments)
    check(options)
    return replace(training_request(options), gates=LENIENT)


def train_and_die(
    home: Path,
    database: str,
    given: dict[str, Path],
    more: tuple[str, ...],
    killed: tuple[str, int],
) -> None:
    """A training that kills its process at a step of a stage."""
    torch.set_num_threads(1)
    train(tiny_services(home, database), None, asked(given, *more), dying(*killed))


def train_whole(home: Path, database: str, given: dict[str, Path], *more: str) -> dict[str, float]:
    """A training to its end; the last loss of each stage."""
    result = train(tiny_services(home, database), None, asked(given, *more), quiet)
    losses: dict[str, float] = {}
    for name, evaluation in result.record.evaluations.items():
        assert evaluation.training_loss is not None
        losses[name] = evaluation.training_loss
    return losses
