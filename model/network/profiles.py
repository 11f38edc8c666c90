"""Profiles: named sizes of everything. `tiny` trains on a CPU in minutes, `qwen-3b` and `qwen-7b` are the paper's setting."""

from dataclasses import dataclass, replace
from typing import Literal

from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape

StageName = Literal["memorize", "comprehend", "align"]


@dataclass(frozen=True, slots=True)
class Stage:
    """The numbers of one training stage (paper, appendix E). `replay` is the number of stage-one samples mixed in, as a
    share of the training images; `caption_replay` the same of stage-two samples. The paper replays stage one in
    comprehension only.

    `soft_label_weight` is λ_ssp of equation 12. `warmup` is a share of the steps, `weight_decay`, `betas` and `clip`
    are AdamW's and the gradient norm's.
    """

    name: StageName
    epochs: float
    learning_rate: float
    batch: int
    replay: float = 0.0
    caption_replay: float = 0.0
    soft_label_weight: float = 0.0
    warmup: float = 0.06
    weight_decay: float = 0.05
    beta2: float = 0.98
    clip: float = 1.0


@dataclass(frozen=True, slots=True)
class TinySize:
    """Widths of the small configuration of the real Qwen2.5-VL class, made here because no weights can be fetched."""

    hidden: int = 160
    layers: int = 3
    heads: int = 5
    kv_heads: int = 1
    feed_forward: int = 448
    vision_hidden: int = 96
    vision_depth: int = 3
    vision_heads: int = 4
    vision_feed_forward: int = 256
    patch_px: int = 7
    image_px: int = 56
    vocabulary: int = 1024


@dataclass(frozen=True, slots=True)
class Profile:
    """One named size: model source, encoder, teacher, identifier shape and the three stages, from the base and for a refresh.

    `replay` is how many images that the parent was trained on a refresh mixes in, as a multiple of the new ones.
    """

    name: str
    shape: IdentifierShape
    stages: tuple[Stage, Stage, Stage]
    refresh: tuple[Stage, Stage, Stage]
    embedding_width: int
    model: str | None
    encoder: str | None
    teacher: str | None
    tiny: TinySize | None = None
    max_text_tokens: int = 128
    replay: float = 0.5
    views: int = 0
    """Shifted views of each training image whose visual tokens are computed once, the vision tower frozen; 0 trains it."""

    def stage(self, name: StageName) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def with_stages(self, stages: tuple[Stage, ...]) -> "Profile":
        """The same profile with other stage numbers (experiments, tests)."""
        return replace(self, stages=_replaced(self.stages, stages))

    def with_refresh(self, stages: tuple[Stage, ...]) -> "Profile":
        """The same profile with other numbers of a refresh."""
        return replace(self, refresh=_replaced(self.refresh, stages))


def _replaced(
    stages: tuple[Stage, Stage, Stage], others: tuple[Stage, ...]
) -> tuple[Stage, Stage, Stage]:
    by_name = {stage.name: stage for stage in others}
    first, second, third = (by_name.get(stage.name, stage) for stage in stages)
    return first, second, third


def _qwen(name: str, model: str) -> Profile:
    return Profile(
        name=name,
        shape=IdentifierShape(codes=(64, 32, 16, 32), suffixes=256),
        stages=(
            Stage("memorize", epochs=5, learning_rate=5e-5, batch=64),
            Stage("comprehend", epochs=5, learning_rate=3e-5, batch=64, replay=0.25),
            Stage("align", epochs=5, learning_rate=2e-5, batch=10, soft_label_weight=0.1),
        ),
        refresh=(
            Stage("memorize", epochs=1, learning_rate=2e-5, batch=64),
            Stage("comprehend", epochs=1, learning_rate=1e-5, batch=64, replay=0.25),
            Stage("align", epochs=2, learning_rate=1e-5, batch=10, soft_label_weight=0.1),
        ),
        embedding_width=2048,
        model=model,
        encoder="jinaai/jina-embeddings-v4",
        teacher="jinaai/jina-reranker-m0",
    )


PROFILES: dict[str, Profile] = {
    "tiny": Profile(
        name="tiny",
        shape=IdentifierShape(codes=(16, 8, 8, 4), suffixes=64),
        stages=(
            # Memorisation sees each image once in each view. Replay in the alignment too: without it the model forgets how to
            # look at images, and unseen ones are found half as often (docs/experiments/); and it forgets how to describe.
            Stage("memorize", epochs=1, learning_rate=1e-3, batch=64),
            Stage("comprehend", epochs=0.5, learning_rate=1e-3, batch=64, replay=0.25),
            Stage(
                "align",
                epochs=4,
                learning_rate=1e-3,
                batch=64,
                replay=1.0,
                caption_replay=0.5,
                soft_label_weight=0.1,
            ),
        ),
        # One view of each image is enough to remember an identifier that the model gave itself (docs/longrun.md).
        refresh=(
            Stage("memorize", epochs=0.34, learning_rate=1e-3, batch=64),
            Stage("comprehend", epochs=0.25, learning_rate=1e-3, batch=64, replay=0.25),
            Stage(
                "align",
                epochs=1,
                learning_rate=1e-3,
                batch=64,
                replay=0.5,
                caption_replay=0.25,
                soft_label_weight=0.1,
            ),
        ),
        embedding_width=128,
        model=None,
        encoder=None,
        teacher=None,
        tiny=TinySize(),
        max_text_tokens=96,
        views=3,
    ),
    "qwen-3b": _qwen("qwen-3b", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen-7b": _qwen("qwen-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
}


def profile(name: str) -> Profile:
    """The profile of that name; `UsageError` lists the allowed ones."""
    if name not in PROFILES:
        raise UsageError(f"unknown profile {name!r}; allowed are {', '.join(PROFILES)}")
    return PROFILES[name]
