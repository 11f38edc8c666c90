"""The dry run: sequences, steps, tokens, memory and hours of a training, computed and not measured.

Nothing is loaded but a configuration. Rates and shares that are assumed are named in
`model.training.hardware`; pictures are taken as four by three.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from model.network.backbone import MERGE
from model.network.compute import Compute
from model.network.profiles import Profile, Stage
from model.network.published import backbone_config, known_parameters
from model.network.query_head import query_head_parameters
from model.training.hardware import LAUNCH_S, USABLE, UTILISATION, Gpu
from model.training.memory import (
    Load,
    Memory,
    ModelShape,
    model_shape,
    step_memory,
    trained_parameters,
)
from schemas.errors import UsageError

# Tokens beside the visual ones when an image is memorised: marks, the prompt and the identifier.
_AROUND_IMAGE = 16

# Tokens beside a caption: the instruction, the identifier and marks; and in alignment.
_AROUND_DESCRIBED = 16
_AROUND_QUERY = 6

# Identifier tokens that an image or a query predicts.
_IDENTIFIER = 5

# Pixels where a profile sets no bound: the store keeps no more unless it is asked to.
_DEFAULT_PIXELS = 448 * 336

# Tokens of a query, and passes when an identifier is decoded: the prompt with the codes of id1,
# those of id2, those of id3.
_QUERY_TOKENS = 16
_PASSES = 3


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is trained on: how many images and captions, and the tokens of a caption."""

    images: int
    captions: int
    mean_tokens: float = 14.0
    longest_tokens: int = 60


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage, in numbers."""

    name: str
    sequences: int
    steps: int
    tokens: int
    """Of all epochs, visual tokens included, without padding."""
    hours: float
    memory: Memory
    """On each GPU."""


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """Answering from one GPU of the kind, by published rates."""

    weights: int
    """Bytes of the backbone in bfloat16."""
    encoder: int
    floor_ms: float
    """Least time of one query: its passes read the decoder's weights, whatever else they do."""
    queries_per_s: float
    """Most that the rate of products allows, many queries at once."""


@dataclass(frozen=True, slots=True)
class Between:
    """Bytes on the first GPU between stages: it measures with the whole model and the encoder, and
    lets the teacher score. While a stage is trained both are elsewhere.
    """

    weights: int
    encoder: int
    teacher: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.encoder + self.teacher


@dataclass(frozen=True, slots=True)
class DryRun:
    """A training on `gpus` GPUs, computed."""

    gpu: Gpu
    gpus: int
    parameters: int
    trained: int
    stages: tuple[StagePlan, ...]
    between: Between
    serving: ServingPlan

    @property
    def hours(self) -> float:
        """All stages, without reading images, encoder and teacher."""
        return sum(stage.hours for stage in self.stages)

    @property
    def largest(self) -> StagePlan:
        """The stage that takes most memory."""
        return max(self.stages, key=lambda stage: stage.memory.total)

    @property
    def most(self) -> int:
        """Bytes of the first GPU at its fullest."""
        return max(self.largest.memory.total, self.between.total)


def dry_run(profile: Profile, corpus: Corpus, gpu: Gpu, gpus: int, *, refresh: bool) -> DryRun:
    """The plan of a training; `UsageError` when it cannot fit, with the setting that would."""
    if profile.model is None:
        raise UsageError(
            f"profile {profile.name} trains on a CPU and needs no plan; a dry run is for profiles "
            "with a pretrained model, such as qwen-3b"
        )
    shape = model_shape(backbone_config(profile.model), _added_tokens(profile))
    if profile.query_head:
        own = query_head_parameters(shape.text.hidden, profile.embedding_width)
        shape = replace(shape, head=shape.head + own)
    plan = _plan(profile, shape, corpus, gpu, gpus, refresh=refresh)
    if _fits(plan):
        return plan
    raise UsageError(_refusal(profile, shape, corpus, plan, refresh=refresh))


def _added_tokens(profile: Profile) -> int:
    """Identifier tokens and the two marks. Joint tokens are for small models."""
    return sum(profile.shape.codes) + profile.shape.suffixes + 2


def _plan(
    profile: Profile, shape: ModelShape, corpus: Corpus, gpu: Gpu, gpus: int, *, refresh: bool
) -> DryRun:
    chosen = profile.refresh if refresh else profile.stages
    stages = tuple(_stage(profile, shape, corpus, stage, gpu, gpus) for stage in chosen)
    return DryRun(
        gpu=gpu,
        gpus=gpus,
        parameters=shape.parameters,
        trained=trained_parameters(shape, profile.compute),
        stages=stages,
        between=Between(
            4 * shape.parameters, _bytes_of(profile.encoder), _bytes_of(profile.teacher)
        ),
        serving=_serving(profile, shape, gpu),
    )


def _stage(
    profile: Profile, shape: ModelShape, corpus: Corpus, stage: Stage, gpu: Gpu, gpus: int
) -> StagePlan:
    images, described, queries = _sequences(profile, corpus, stage)
    sequences = images + described + queries
    whole = -(-stage.batch // gpus) * gpus
    steps = max(1, round(stage.epochs * -(-sequences // whole)))
    share = steps * whole / max(1, sequences)
    visual = _patches(profile) // shape.merge**2
    tokens = (
        images * (visual + _AROUND_IMAGE)
        + described * (corpus.mean_tokens + _AROUND_DESCRIBED)
        + queries * (corpus.mean_tokens + _AROUND_QUERY)
    )
    predicted = (images + queries) * _IDENTIFIER + described * (corpus.mean_tokens + 1)
    products = _products(shape, profile.compute, tokens, images * _patches(profile), predicted)
    rate = gpus * gpu.teraflops * 1e12 * UTILISATION
    launches = steps * _parts(profile, stage, gpus) * shape.text.layers * LAUNCH_S
    return StagePlan(
        name=stage.name,
        sequences=sequences,
        steps=steps,
        tokens=round(share * tokens),
        hours=(share * products / rate + launches) / 3600,
        memory=_memory(profile, shape, corpus, stage, gpus),
    )


def _sequences(profile: Profile, corpus: Corpus, stage: Stage) -> tuple[int, int, int]:
    """Images to memorise, identifiers to describe, and queries of one epoch."""
    replayed = round(stage.replay * corpus.images)
    described = round(stage.caption_replay * corpus.images)
    if stage.name == "memorize":
        return corpus.images, 0, 0
    if stage.name == "comprehend":
        return replayed, round(corpus.captions * (1 - profile.held_out)) + described, 0
    return replayed, described, corpus.captions + round(stage.mismatched * corpus.images)


def _patches(profile: Profile) -> int:
    """Patches of a four by three picture as large as the backbone sees one."""
    # Of 14 pixels; each side is rounded to whole merged blocks.
    block = 14 * MERGE
    short = (profile.max_pixels or _DEFAULT_PIXELS) ** 0.5 * (3 / 4) ** 0.5
    rows, columns = round(short // block), round(short * 4 / 3 // block)
    return rows * columns * MERGE**2


def _products(
    shape: ModelShape, compute: Compute, tokens: float, patches: float, predicted: float
) -> float:
    """Operations of one epoch: two for each weight and token, and as often as it is gone through.

    Forwards once, and once more where layers are computed again; backwards for what is before a
    layer and for its weights.
    """
    again = int(compute.checkpointing)
    text = shape.text.layers * shape.text.layer * (2 + again + (0 if compute.lora_rank else 1))
    tower = shape.vision.layers * shape.vision.layer * (1 if compute.frozen_vision else 3 + again)
    return 2 * (tokens * text + patches * tower + predicted * shape.table * 3)


def _memory(profile: Profile, shape: ModelShape, corpus: Corpus, stage: Stage, gpus: int) -> Memory:
    """Of the largest micro-batch of a stage: all images, or the longest captions."""
    own = -(-stage.batch // gpus)
    rows = min(own, profile.compute.micro_batch or own)
    parts = _parts(profile, stage, gpus)
    images, described, queries = _sequences(profile, corpus, stage)
    loads: list[Load] = []
    if images:
        tokens = _patches(profile) // shape.merge**2 + _AROUND_IMAGE
        loads.append(Load(rows * tokens, rows * _patches(profile), rows * _IDENTIFIER, parts))
    longest = min(corpus.longest_tokens, profile.max_text_tokens)
    if described:
        tokens = longest + _AROUND_DESCRIBED
        loads.append(Load(rows * tokens, 0, rows * (longest + 1), parts))
    if queries:
        loads.append(Load(rows * (longest + _AROUND_QUERY), 0, rows * _IDENTIFIER, parts))
    compute = profile.compute
    half = compute.dtype != "float32"
    found = [step_memory(shape, compute, load, gpus=gpus, half=half) for load in loads]
    return max(found, key=lambda memory: memory.total)


def _parts(profile: Profile, stage: Stage, gpus: int) -> int:
    """Micro-batches of a step in each process."""
    own = -(-stage.batch // gpus)
    return -(-own // min(own, profile.compute.micro_batch or own))


def _bytes_of(source: str | None) -> int:
    """Bytes of an encoder or a teacher in bfloat16; 0 for one of unknown size."""
    return round(2 * known_parameters(source))


def _serving(profile: Profile, shape: ModelShape, gpu: Gpu, beams: int = 20) -> ServingPlan:
    decoder = shape.text.layers * shape.text.layer + shape.text.around
    # A query head takes the place of its text tower.
    encoder = 0 if profile.query_head else _bytes_of(profile.encoder)
    # The encoder reads the same text.
    operations = 2 * decoder * (_QUERY_TOKENS + _PASSES * beams) + encoder * _QUERY_TOKENS
    read = 2 * decoder * _PASSES + encoder
    return ServingPlan(
        weights=2 * shape.parameters,
        encoder=encoder,
        floor_ms=read / gpu.bandwidth_tb_s / 1e9,
        queries_per_s=gpu.teraflops * 1e12 * UTILISATION / operations,
    )


def _fits(plan: DryRun) -> bool:
    return plan.most <= usable_bytes(plan.gpu)


def usable_bytes(gpu: Gpu) -> int:
    """What tensors can have of a GPU's memory."""
    return round(gpu.memory_gib * USABLE * 2**30)


def _refusal(
    profile: Profile, shape: ModelShape, corpus: Corpus, plan: DryRun, *, refresh: bool
) -> str:
    largest = plan.largest
    if plan.between.total > usable_bytes(plan.gpu):
        return (
            f"{profile.name} needs {plan.between.total / 2**30:.1f} GiB between stages, for the "
            f"whole model, its encoder and its teacher on the first {plan.gpu.name}, which has "
            f"{usable_bytes(plan.gpu) / 2**30:.1f} GiB for it; take a larger GPU, or a smaller "
            "model, encoder or teacher"
        )
    found = (
        f"{profile.name} needs {largest.memory.total / 2**30:.1f} GiB in stage {largest.name} on "
        f"each {plan.gpu.name}, which has {usable_bytes(plan.gpu) / 2**30:.1f} GiB for it"
    )
    for compute, gpus, said in _remedies(profile.compute, plan.gpus):
        other = replace(profile, compute=compute)
        if _fits(_plan(other, shape, corpus, plan.gpu, gpus, refresh=refresh)):
            return f"{found}; it fits with {said}"
    return f"{found}; no setting makes it fit: take a larger GPU, or a smaller model"


def _remedies(compute: Compute, gpus: int) -> Iterator[tuple[Compute, int, str]]:
    """Settings that take less memory, each with what was before, least change first."""
    said: list[str] = []
    now = compute
    if not now.checkpointing:
        now = replace(now, checkpointing=True)
        said.append("compute.checkpointing = true")
        yield now, gpus, " and ".join(said)
    said.append("")
    for rows in (8, 4, 2, 1):
        if not now.micro_batch or rows < now.micro_batch:
            now = replace(now, micro_batch=rows)
            said[-1] = f"compute.micro_batch = {rows}"
            yield now, gpus, " and ".join(said)
    said = [part for part in said if part]
    if gpus > 1 and not now.sharded:
        now = replace(now, sharded=True)
        said.append("compute.sharded = true")
        yield now, gpus, " and ".join(said)
    if not now.frozen_vision:
        now = replace(now, frozen_vision=True)
        said.append("compute.frozen_vision = true")
        yield now, gpus, " and ".join(said)
    if now.sharded:
        for more in (2, 4, 8, 16):
            if more > gpus:
                yield compute, more, f"--gpus {more}"
    if not now.lora_rank:
        yield replace(now, lora_rank=16), gpus, " and ".join([*said, "compute.lora_rank = 16"])
