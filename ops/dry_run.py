"""The page of `sigma train --dry-run`: a plan as text and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict

from model.training.dry_run import Corpus, DryRun, usable_bytes
from model.training.hardware import USABLE, UTILISATION
from schemas.records import JsonObject, ManifestEntry

# Tokens of a word, of the tokenizers of large models on English.
_TOKENS_OF_A_WORD = 1.3


def corpus_of(entries: Sequence[ManifestEntry]) -> Corpus:
    """Counts of a manifest's training images; `sigma train` takes the same ones."""
    trained = [entry for entry in entries if entry.split == "train"] or list(entries)
    lengths = [len(caption.split()) for entry in trained for caption in entry.captions]
    if not lengths:
        return Corpus(len(trained), 0)
    return Corpus(
        images=len(trained),
        captions=len(lengths),
        mean_tokens=sum(lengths) / len(lengths) * _TOKENS_OF_A_WORD,
        longest_tokens=round(max(lengths) * _TOKENS_OF_A_WORD),
    )


def document(plan: DryRun, corpus: Corpus) -> JsonObject:
    """The document of `sigma train --dry-run --json`. Memory is in bytes."""
    stages = []
    for stage in plan.stages:
        memory = asdict(stage.memory) | {"total": stage.memory.total}
        stages.append(asdict(stage) | {"memory": memory})
    return {
        "computed": True,
        "gpu": plan.gpu.name,
        "gpus": plan.gpus,
        "usable_bytes": usable_bytes(plan.gpu),
        "assumed": {"usable_share": USABLE, "utilisation": UTILISATION},
        "corpus": asdict(corpus),
        "parameters": plan.parameters,
        "trained_parameters": plan.trained,
        "stages": stages,
        "between": asdict(plan.between) | {"total": plan.between.total},
        "hours": plan.hours,
        "serving": asdict(plan.serving),
    }


def text(plan: DryRun, corpus: Corpus) -> str:
    """The plan for people."""
    lines = [
        f"computed, not measured: {plan.gpus} x {plan.gpu.name}, {corpus.images:,} images, "
        f"{corpus.captions:,} captions",
        f"{plan.parameters / 1e9:.2f} billion parameters, {plan.trained / 1e9:.2f} trained",
        "",
        f"{'stage':<12}{'sequences':>11}{'steps':>9}{'tokens':>15}{'hours':>9}",
    ]
    for stage in plan.stages:
        lines.append(
            f"{stage.name:<12}{stage.sequences:>11,}{stage.steps:>9,}{stage.tokens:>15,}"
            f"{stage.hours:>9.1f}"
        )
    lines.append(f"{'all':<12}{'':>35}{plan.hours:>9.1f}")
    return "\n".join([*lines, "", *_memory_lines(plan), "", *_serving_lines(plan)])


def _memory_lines(plan: DryRun) -> list[str]:
    training, between = plan.largest.memory, plan.between
    lines = [f"memory of each GPU in stage {plan.largest.name}, GiB"]
    lines += _sizes(asdict(training) | {"total": training.total})
    lines.append("memory of the first GPU between stages, GiB")
    lines += _sizes(asdict(between) | {"total": between.total})
    return [*lines, f"of {usable_bytes(plan.gpu) / 2**30:.1f} GiB that tensors can have"]


def _sizes(parts: dict[str, int]) -> list[str]:
    return [f"  {name:<12}{size / 2**30:>8.2f}" for name, size in parts.items()]


def _serving_lines(plan: DryRun) -> list[str]:
    serving = plan.serving
    read = "the decoder and the encoder" if serving.encoder else "the decoder alone"
    return [
        f"one {plan.gpu.name} that answers: {(serving.weights + serving.encoder) / 2**30:.1f} GiB "
        f"of weights, {read}, no query under {serving.floor_ms:.1f} ms, at most "
        f"{serving.queries_per_s:,.0f} queries a second",
        f"assumed: {UTILISATION:.0%} of the published rate, {USABLE:.0%} of the memory",
    ]
