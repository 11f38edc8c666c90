"""`sigma bench gpu`: queries and training of a large backbone with random weights, beside the plan.

On a GPU `qwen-3b` at its published size; on a CPU the same script on a miniature, whose figures say
that the script runs and nothing about a GPU.
"""

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from model.decoding.beam import search_leaves
from model.decoding.decoder import Decoder
from model.network.backbone import tiny_config
from model.network.inputs import ImagePreprocessor
from model.network.parts import default_device
from model.network.precision import number_format
from model.network.profiles import Profile, TinySize, profile
from model.network.published import backbone_config
from model.network.sigma import SigmaModel, extend_vocabulary
from model.network.tokenizer import (
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    token_id,
    train_tokenizer,
)
from model.retrieval.trie import Trie
from model.training.batches import StageBatch
from model.training.memory import Load, model_shape, step_memory
from model.training.peak_memory import PeakMemory
from model.training.trainee import as_trainee
from ops.bench.query_texts import query_texts
from schemas.records import JsonObject

# The profile that is measured on a GPU, and shrunk on a CPU.
_PROFILE = "qwen-3b"

_BEAMS = (10, 20)
_IMAGES = 100_000
_WARM_UP = 3

# (queries, training steps) on a GPU, and in miniature.
_ON_GPU = (200, 8)
_IN_MINIATURE = (20, 2)

# Pictures of a step, four by three as most photos are.
_PICTURE_PX = (336, 448)

# The class and the proportions of the real one; pictures of four by three keep their patches.
_MINIATURE = TinySize(
    hidden=128,
    layers=2,
    heads=4,
    kv_heads=1,
    feed_forward=384,
    vision_hidden=64,
    vision_depth=2,
    vision_feed_forward=160,
    patch_px=14,
    image_px=112,
)

# What makes a host wait for its GPU, by the names of PyTorch's operators: a value that is read, and
# a result whose size is not known before.
_WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")


@dataclass(frozen=True, slots=True)
class QueryFigures:
    """One query at a time."""

    graphs: bool
    """Whether searches were replayed by CUDA graphs."""
    beams: int
    queries: int
    p50_ms: float
    p99_ms: float
    synchronisations: float
    """How often a query makes the host wait; on a CPU, how often it would."""


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """Steps of memorisation, one micro-batch each, with checkpointed layers and bfloat16."""

    tokens_per_s: float
    peak_bytes: int
    computed_bytes: int
    """Of the dry run."""
    ratio: float
    """Computed by measured."""


def gpu_bench(seed: int, device: torch.device | None = None) -> JsonObject:
    """All figures; `device` is a GPU where there is one."""
    chosen = device or default_device()
    on_gpu = chosen.type == "cuda"
    queries, steps = _ON_GPU if on_gpu else _IN_MINIATURE
    sigma = random_model(on_gpu, seed).to(chosen)
    training = _training(sigma, steps, seed)
    backbone: torch.nn.Module = sigma.backbone
    backbone.to(dtype=number_format(sigma.profile.compute, chosen))
    found = []
    # On a GPU with graphs and without; a CPU has none.
    for graphs in (True, False) if on_gpu else (False,):
        found += [_queries(sigma, beams, queries, seed, graphs=graphs) for beams in _BEAMS]
    name = torch.cuda.get_device_name(chosen) if on_gpu else "cpu"
    note = "" if on_gpu else "in miniature on a CPU: no figure of a GPU exists"
    return {
        "device": name,
        "is_gpu": on_gpu,
        "note": note,
        "parameters": sum(weight.numel() for weight in sigma.parameters()),
        "queries": [asdict(figures) for figures in found],
        "training": asdict(training),
    }


def as_text(document: JsonObject) -> str:
    """The figures for people."""
    lines = [f"{document['device']}, {document['parameters'] / 1e6:,.1f} million parameters"]
    if document["note"]:
        lines.append(str(document["note"]))
    return "\n".join([*lines, json.dumps(document, indent=2)])


def random_model(at_size: bool, seed: int) -> SigmaModel:
    """The measured model with random weights, in training's number format."""
    chosen = profile(_PROFILE)
    tokenizer = train_tokenizer(query_texts(2000, seed), 1024)
    config = _config(chosen, tokenizer) if at_size else tiny_config(_MINIATURE, tokenizer)
    if not at_size:
        chosen = replace(chosen, compute=replace(chosen.compute, dtype="bfloat16"))
    torch.manual_seed(seed)
    backbone = Qwen2_5_VLForConditionalGeneration(config)
    extend_vocabulary(backbone, tokenizer, chosen)
    preprocessor = ImagePreprocessor(Qwen2VLImageProcessor(), 0, 0)
    return SigmaModel(backbone, tokenizer, preprocessor, chosen)


def _config(chosen: Profile, tokenizer: PreTrainedTokenizerBase) -> Qwen2_5_VLConfig:
    """The published shape, with the special tokens of a small tokenizer."""
    config: Any = backbone_config(str(chosen.model))
    config.image_token_id = token_id(tokenizer, IMAGE)
    config.video_token_id = token_id(tokenizer, VIDEO)
    config.vision_start_token_id = token_id(tokenizer, VISION_START)
    config.vision_end_token_id = token_id(tokenizer, VISION_END)
    found: Qwen2_5_VLConfig = config
    return found


def _queries(sigma: SigmaModel, beams: int, count: int, seed: int, *, graphs: bool) -> QueryFigures:
    decoder = Decoder(sigma)
    if not graphs:
        decoder.graphs = None
    shape = sigma.profile.shape
    trie = Trie(shape, sigma.device)
    slots = np.arange(_IMAGES)
    leaves = np.random.default_rng(seed).integers(0, shape.leaves, _IMAGES)
    trie.insert(leaves, slots, np.zeros(_IMAGES, np.float32), slots % shape.suffixes)

    def answer(text: str) -> None:
        search_leaves(decoder, decoder.read_texts([text]), shape, beams, trie.branches).on_host()

    texts = query_texts(count + _WARM_UP, seed)
    # Every text once where there are graphs: those of all lengths are captured before.
    for text in texts if graphs else texts[:_WARM_UP]:
        answer(text)
    took = [_milliseconds(answer, text) for text in texts[_WARM_UP:]]
    p50, p99 = np.percentile(took, [50, 99]).tolist()
    waits = _synchronisations(answer, texts[0], sigma.device)
    return QueryFigures(graphs, beams, count, p50, p99, waits)


def _milliseconds(work: Callable[[str], None], text: str) -> float:
    began = time.perf_counter()
    work(text)
    return (time.perf_counter() - began) * 1e3


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _synchronisations(answer: Callable[[str], None], text: str, device: torch.device) -> int:
    """How often one query makes the host wait: CUDA warns of it; on a CPU operators are counted."""
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            answer(text)
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        answer(text)
    counted = {event.key: event.count for event in profiled.key_averages()}
    return sum(counted.get(name, 0) for name in _WAITING)


def _training(sigma: SigmaModel, steps: int, seed: int) -> TrainingFigures:
    rows = sigma.profile.compute.micro_batch
    batch = _batch(sigma, rows, seed)
    with as_trainee(sigma, seed):
        sigma.train()
        optimizer = torch.optim.AdamW(sigma.parameters(), 1e-5, foreach=False)

        def step() -> None:
            loss, *_ = sigma(batch.examples, batch.patches)
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad()

        step()
        _finish(sigma.device)
        began = time.perf_counter()
        for _ in range(steps):
            step()
        _finish(sigma.device)
        seconds = time.perf_counter() - began
        peak = _peak(step, [*sigma.parameters(), *_states(optimizer)], sigma.device)
    tokens = sum(len(each.tokens) for each in batch.examples)
    computed = _computed(sigma, batch)
    return TrainingFigures(steps * tokens / seconds, peak, computed, computed / peak)


def _states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values()]


def _peak(step: Callable[[], None], there: Sequence[Tensor], device: torch.device) -> int:
    """Bytes at the worst moment of a step."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return int(torch.cuda.max_memory_allocated(device))
    with PeakMemory(there) as memory:
        step()
    return memory.peak


def _batch(sigma: SigmaModel, rows: int, seed: int) -> StageBatch:
    """One micro-batch of random pictures with random identifiers."""
    rng = np.random.default_rng(seed)
    pictures = list(rng.integers(0, 255, (rows, *_PICTURE_PX, 3), dtype=np.uint8))
    patches = sigma.preprocessor(pictures)
    shape = sigma.profile.shape
    examples = []
    for row, count in enumerate(patches.token_counts(sigma.merge)):
        codes = [int(rng.integers(0, codes)) for codes in (*shape.codes, shape.suffixes)]
        examples.append(sigma.prompts.memorize(row, count, codes))
    return StageBatch(examples, patches)


def _computed(sigma: SigmaModel, batch: StageBatch) -> int:
    """What the dry run says of that step on one GPU."""
    patches = batch.patches
    load = Load(
        tokens=len(batch.examples) * max(len(each.tokens) for each in batch.examples),
        patches=0 if patches is None else len(patches.patches),
        predicted=sum(len(each.tokens) - each.prompt_length for each in batch.examples),
    )
    shape = model_shape(sigma.backbone.config, 0)
    half = number_format(sigma.profile.compute, sigma.device) == torch.bfloat16
    return step_memory(shape, sigma.profile.compute, load, gpus=1, half=half).total
