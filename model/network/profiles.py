"""Profiles: named sizes of everything.

`tiny` and `small` train on a CPU in minutes; `qwen-3b` and `qwen-7b` are the paper's setting.
"""

from dataclasses import dataclass, replace
from typing import Literal

from model.network.compute import Compute
from schemas.errors import UsageError
from schemas.identifiers import IdentifierShape

StageName = Literal["memorize", "comprehend", "align"]


@dataclass(frozen=True, slots=True)
class Stage:
    """The numbers of one training stage (paper, appendix E)."""

    name: StageName
    epochs: float
    learning_rate: float
    batch: int
    """Sequences, of all processes together."""
    replay: float = 0.0
    """Sequences of memorisation mixed in, as a multiple of the training images.

    The paper replays them in comprehension only (section 3.2.2).
    """
    caption_replay: float = 0.0
    """Sequences of comprehension mixed in, as a multiple of the training images."""
    soft_label_weight: float = 0.0
    """λ_ssp of equation 12."""
    mismatched: float = 0.0
    """Captions beside the identifier of another image, as a multiple of the training images.

    Only the soft-label head learns from them. The paper has none: its head sees only pairs that
    belong together.
    """
    without_suffix: float = 0.0
    """Share of the captions that follow id1 to id4 alone.

    The suffix is arbitrary: an image that arrives later has one that says nothing.
    """
    shortened: float = 0.0
    """Share of the captions that follow the first codes alone, none to three, equally often.

    Explanations are compared with what the model says of no identifier at all, and prefixes can be
    explained too.
    """
    hidden_words: float = 0.0
    """Share of a caption's words that the model does not see while it learns to say them: it reads
    the identifier then, where it would learn captions by heart (Bowman et al. 2016)."""
    vector_views: int = 0
    """Views of pictures' vectors that memorisation and alignment learn from, of all images and
    epochs together, where the model reads vectors; each image has at least one in an epoch, and by
    default no more."""
    rounds: int = 1
    """How often the stage is trained at most, until it passes its gate."""
    warmup: float = 0.06
    """Share of the steps."""
    weight_decay: float = 0.05
    beta2: float = 0.98
    """AdamW's second decay rate."""
    clip: float = 1.0
    """Bound of the gradient's norm."""


# Memorisation, comprehension, alignment.
Stages = tuple[Stage, Stage, Stage]


@dataclass(frozen=True, slots=True)
class TinySize:
    """Widths of the small configuration of the real Qwen2.5-VL class.

    Names follow its configuration; `*_px` are pixels, `vocabulary` is without identifier tokens.
    """

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
    """One named size: where the weights come from, the identifiers' shape, and the stages."""

    name: str
    shape: IdentifierShape
    stages: Stages
    """Of a training from the base."""
    refresh: Stages
    """Of a training from the weights of another generation."""
    embedding_width: int
    model: str | None
    """Folder or hub name, best with a revision (`owner/name@revision`), of the pretrained backbone;
    None where a base takes its place.

    The same for encoder and teacher; an encoder may also be one of the packages of the registry.
    """
    encoder: str | None
    teacher: str | None
    tiny: TinySize | None = None
    min_pixels: int | None = None
    """Fewest pixels of a picture as a pretrained backbone sees it; None: its processor's own.

    Smaller ones are enlarged. `tiny` has a fixed square instead.
    """
    max_pixels: int | None = None
    """Most pixels likewise: visual tokens grow with them, one for each 28 x 28."""
    trust_remote_code: bool = False
    """Whether encoder and teacher may run modelling code that comes with their weights."""
    max_text_tokens: int = 128
    """Longer captions and queries are cut."""
    replay: float = 0.5
    """Images that the parent was trained on, which a refresh mixes in, as a multiple of the new."""
    views: int = 0
    """Views of each training image whose visual tokens are computed once, shifted but the first.

    The vision tower is frozen then; 0 trains it.
    """
    held_out: float = 0.0
    """Share of the training images whose identifiers are never shown before a caption.

    Comprehension is measured on them; 0 measures it on identifiers that were shown before other
    captions.
    """
    wins: float = 1.0
    """Most that a gate asks for of the share of pairs whose own identifier predicts the caption."""
    uncased: bool = False
    """Whether a tokenizer made of the corpus's own captions reads capital letters as small ones."""
    encoder_words: bool = False
    """Whether random weights begin with the encoder's words (`model.network.word_rows`)."""
    joint_tokens: bool = False
    """Whether there is a token for each pair of id1 and a finer code, which explanations read.

    A small model learns in thousands of steps only that a finer code means something else under
    each id1. Captions follow an identifier and its joint tokens directly then: of the paper's
    instruction (section 3.2.2) the small tokenizer makes 35 tokens, more than a caption has.
    """
    guidance: float = 0.0
    """How far explanations lean to what sets the identifier apart (`model.decoding.explain`).

    0 says what is likeliest; more asks for `Stage.shortened`, which teaches what is likely anyway.
    """
    caption_directions: bool = False
    """Whether the codebook is fitted to what captions tell of embeddings, where they are enough
    (`model.identifiers.caption_directions`), and not to all that varies."""
    centred_components: bool = True
    """Whether id2 and id3 are Semi-NMF components of residuals to id1's centroid; False: of the
    vectors of its cluster, the paper's V_local (docs/experiments/local-features.md)."""
    subspaces: int = 1
    """M of id4's product quantisation: its codes are N**M, its vectors are M parts of a width."""
    query_head: bool = False
    """Whether the model learns to give queries' vectors itself: query workers load no encoder then
    (`model.network.query_head`)."""
    compute: Compute = Compute()
    """Number formats, and what makes a large model fit into memory."""

    def stage(self, name: StageName) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def with_stages(self, stages: tuple[Stage, ...]) -> "Profile":
        """The same profile with other stage numbers (experiments, tests)."""
        return replace(self, stages=_replaced(self.stages, stages))

    def with_refresh(self, stages: tuple[Stage, ...]) -> "Profile":
        """The same profile with other numbers of a refresh."""
        return replace(self, refresh=_replaced(self.refresh, stages))


def _replaced(stages: Stages, others: tuple[Stage, ...]) -> Stages:
    """The stages, each replaced by the one of its name among the others."""
    by_name = {stage.name: stage for stage in others}
    first, second, third = (by_name.get(stage.name, stage) for stage in stages)
    return first, second, third


# Micro-batches and sharding with which the paper's four cards of 48 GB hold training and
# activations (docs/gpu.md; `sigma train --dry-run` computes it).
_QWEN_COMPUTE = Compute(
    dtype="auto", micro_batch=8, checkpointing=True, sharded=True, loader_workers=2
)

# How captions are replayed and pairs judged in the `qwen-*` profiles: reasoned from `tiny`, not
# measured, for their weights were never within reach.
_QWEN_SUFFIXES = 0.5
_QWEN_CAPTION_REPLAY = 0.25
_QWEN_MISMATCHED = 0.5


def _qwen(name: str, model: str) -> Profile:
    """The paper's setting (appendix E); it has no refresh, so ours trains less, at lower rates.

    Beyond the paper: half of the captions follow id1 to id4 alone, which explanations read; some
    are replayed in alignment, so that they are not forgotten; and the soft-label head sees pairs
    that do not belong together. A comprehension that fails its gate is trained once more.
    """
    return Profile(
        name=name,
        shape=IdentifierShape(codes=(64, 32, 16, 32), suffixes=256),
        stages=(
            Stage("memorize", epochs=5, learning_rate=5e-5, batch=64),
            _qwen_comprehension(epochs=5, learning_rate=3e-5),
            _qwen_alignment(epochs=5, learning_rate=2e-5),
        ),
        refresh=(
            Stage("memorize", epochs=1, learning_rate=2e-5, batch=64),
            _qwen_comprehension(epochs=1, learning_rate=1e-5),
            _qwen_alignment(epochs=2, learning_rate=1e-5),
        ),
        held_out=0.05,
        embedding_width=2048,
        model=model,
        # 192 visual tokens at most.
        max_pixels=448 * 336,
        # jina-embeddings-v4 with its adapter for retrieval merged into the weights.
        encoder="jinaai/jina-embeddings-v4-vllm-retrieval",
        teacher="jinaai/jina-reranker-m0",
        compute=_QWEN_COMPUTE,
    )


def _qwen_comprehension(epochs: float, learning_rate: float) -> Stage:
    return Stage(
        "comprehend",
        epochs=epochs,
        learning_rate=learning_rate,
        batch=64,
        replay=0.25,
        without_suffix=_QWEN_SUFFIXES,
        rounds=2,
    )


def _qwen_alignment(epochs: float, learning_rate: float) -> Stage:
    return Stage(
        "align",
        epochs=epochs,
        learning_rate=learning_rate,
        batch=10,
        caption_replay=_QWEN_CAPTION_REPLAY,
        soft_label_weight=0.1,
        mismatched=_QWEN_MISMATCHED,
        without_suffix=_QWEN_SUFFIXES,
    )


# Small batches: identifiers begin to be read after some hundred steps, and those of 16 sequences
# take half the time of those of 64 (docs/experiments/comprehension.md).
_TINY_COMPREHENSION = Stage(
    "comprehend",
    epochs=3,
    learning_rate=1e-3,
    batch=16,
    replay=0.25,
    without_suffix=1.0,
    shortened=0.1,
    rounds=3,
)

# Replay in the alignment too: without it the model forgets how to look at images, and unseen ones
# are found half as often (docs/experiments/); and it forgets how to describe.
_TINY_ALIGNMENT = Stage(
    "align",
    epochs=3,
    learning_rate=1e-3,
    batch=64,
    replay=1.0,
    caption_replay=1.0,
    soft_label_weight=0.1,
    mismatched=0.5,
    without_suffix=1.0,
    shortened=0.1,
    vector_views=60_000,
)

_TINY = Profile(
    name="tiny",
    shape=IdentifierShape(codes=(32, 8, 8, 4), suffixes=64),
    stages=(
        # Memorisation sees each image once in each view.
        Stage("memorize", epochs=1, learning_rate=1e-3, batch=64, vector_views=20_000),
        _TINY_COMPREHENSION,
        _TINY_ALIGNMENT,
    ),
    refresh=(
        # One view of each image is enough to remember an identifier that the model gave itself
        # (docs/longrun.md): a third of an epoch over three views.
        Stage("memorize", epochs=0.34, learning_rate=1e-3, batch=64, vector_views=5_000),
        replace(_TINY_COMPREHENSION, epochs=0.25),
        replace(_TINY_ALIGNMENT, epochs=1, replay=0.5, caption_replay=0.5, vector_views=20_000),
    ),
    embedding_width=128,
    model=None,
    encoder=None,
    teacher=None,
    tiny=TinySize(),
    max_text_tokens=96,
    views=3,
    held_out=0.05,
    joint_tokens=True,
    guidance=1.0,
    caption_directions=True,
)

_SMALL_COMPREHENSION = Stage(
    "comprehend",
    epochs=2,
    learning_rate=1e-3,
    batch=16,
    replay=0.5,
    without_suffix=1.0,
    shortened=0.1,
    hidden_words=0.5,
    rounds=2,
)

_SMALL_ALIGNMENT = Stage(
    "align",
    epochs=4,
    learning_rate=1e-3,
    batch=64,
    replay=1.0,
    caption_replay=1.0,
    vector_views=24_000,
    without_suffix=1.0,
    shortened=0.1,
    hidden_words=0.5,
)

# For pictures that nobody here made. It reads them and their queries by the vectors of an encoder
# that has seen the world; the captions of a corpus are too few to learn either from.
_SMALL = Profile(
    name="small",
    # More and smaller leaves than `tiny`: where texts and pictures lie far apart, a query needs
    # leaves from many corners (docs/experiments/small.md).
    shape=IdentifierShape(codes=(32, 16, 8, 4), suffixes=64),
    stages=(
        Stage("memorize", epochs=3, learning_rate=1e-3, batch=64),
        _SMALL_COMPREHENSION,
        _SMALL_ALIGNMENT,
    ),
    refresh=(
        Stage("memorize", epochs=1, learning_rate=1e-3, batch=64),
        replace(_SMALL_COMPREHENSION, epochs=1),
        replace(_SMALL_ALIGNMENT, epochs=1, vector_views=6_000),
    ),
    embedding_width=384,
    model=None,
    encoder="efficientnet-minilm",
    teacher=None,
    tiny=TinySize(
        hidden=256,
        layers=4,
        heads=8,
        kv_heads=2,
        feed_forward=704,
        vision_hidden=128,
        vision_depth=4,
        vision_feed_forward=384,
        patch_px=14,
        image_px=112,
        vocabulary=16384,
    ),
    max_text_tokens=96,
    held_out=0.05,
    # Captions are often names here, which no other picture has (docs/experiments/small.md).
    wins=0.65,
    uncased=True,
    encoder_words=True,
    # As in `tiny`; how far explanations lean was not measured here.
    joint_tokens=True,
    guidance=1.0,
)

PROFILES: dict[str, Profile] = {
    "tiny": _TINY,
    "small": _SMALL,
    "qwen-3b": _qwen("qwen-3b", "Qwen/Qwen2.5-VL-3B-Instruct"),
    "qwen-7b": _qwen("qwen-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
}


def profile(name: str) -> Profile:
    """The profile of that name; `UsageError` when there is none."""
    if name not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)}, got {name!r}")
    return PROFILES[name]
