"""The configuration of a study: its streams, policies and sizes, and the profile that it trains."""

from dataclasses import dataclass, replace

from model.network.profiles import Profile, Stage, profile
from ops.study.policies import POLICIES
from ops.study.streams import STREAM_KINDS, StreamConfig, StreamKind
from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape

# 1,024 leaves for some hundreds of images; in `tiny` most of 4,096 leaves would stay empty.
_SHAPE = IdentifierShape((8, 8, 4, 4), 64)

# Sequences of a training step: smaller than in `tiny`, so that a few images make enough steps.
_BATCH = 32

# Half of `tiny`: full retraining happens in every session.
_COMPREHEND_EPOCHS = 0.25

# One less than in `tiny`, for the same reason.
_ALIGN_EPOCHS = 3.0


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """The whole study: every policy on a stream of every kind and seed."""

    seeds: tuple[int, ...] = (0, 1, 2)
    kinds: tuple[StreamKind, ...] = STREAM_KINDS
    policies: tuple[str, ...] = tuple(POLICIES)
    stream: StreamConfig = StreamConfig("stationary")
    """Sizes of every stream; kind and seed are replaced."""
    beams: int = 20
    old_queries: int = 120
    """Earlier images that are asked for in each session."""
    wide: int = 6000
    """Scenes of first and later words that encoder, teacher and vision tower learn beforehand.

    0 takes the shipped base, which knows the first words only.
    """
    contrastive_views: int = 60_000
    """Image views from which encoder and teacher learn them."""
    pretrain_views: int = 18_000
    """Image views from which the vision tower learns them."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.policies) - set(POLICIES))
        if unknown:
            raise UsageError(f"policies must be among {', '.join(POLICIES)}, got {unknown}")
        if not self.seeds or not self.kinds:
            raise UsageError(
                f"a study must have at least one seed and one kind of stream, got seeds"
                f" {self.seeds} and kinds {self.kinds}"
            )

    @property
    def streams(self) -> list[StreamConfig]:
        """The stream of each kind for the first seed, then for the second, and so on."""
        streams = []
        for seed in self.seeds:
            for kind in self.kinds:
                streams.append(replace(self.stream, kind=kind, seed=seed))
        return streams


# A study of minutes, for tests: one seed, one stream, a few sessions, the shipped base.
REDUCED = StudyConfig(
    seeds=(0,),
    kinds=("abrupt",),
    policies=("never", "recluster", "drift"),
    stream=StreamConfig("stationary", first=64, settling=60, sessions=4, arrivals=16, deletions=2),
    old_queries=32,
    wide=0,
)


def study_profile() -> Profile:
    """The `tiny` profile for some hundreds of images."""
    tiny = profile("tiny")
    memorize, comprehend, align = (_smaller_batch(stage) for stage in tiny.stages)
    # No caption is replayed in the alignment: the study never asks for descriptions.
    stages = (
        memorize,
        replace(comprehend, epochs=_COMPREHEND_EPOCHS),
        replace(align, epochs=_ALIGN_EPOCHS, caption_replay=0.0),
    )
    refresh = tuple(_smaller_batch(stage) for stage in tiny.refresh)
    return replace(tiny.with_stages(stages).with_refresh(refresh), shape=_SHAPE)


def _smaller_batch(stage: Stage) -> Stage:
    return replace(stage, batch=_BATCH)
