"""The training set, and the sequences that each stage learns from it.

Letters in shapes: N images, V views of each image, T visual tokens of an image, H hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from model.network.profiles import Stage
from model.network.prompts import TrainingExample
from model.network.sigma import SigmaModel
from model.network.vector_reading import VectorReading
from model.training.vector_set import VectorSet
from schemas.identifiers import LEVELS
from schemas.records import ByteArray, FloatArray, HalfArray, IntArray

T = TypeVar("T")


# Images held out of comprehension: more would not make the figures better.
_MOST_HELD_OUT = 200

# Fewer images are all needed for training.
_LEAST_IMAGES = 500


@dataclass(frozen=True, slots=True)
class MismatchedPair:
    """A caption of one image beside the identifier of another, and the teacher's score of both.

    `identifier_of` is the row of an image, `caption_of` a row and the number of a caption.
    """

    identifier_of: int
    caption_of: tuple[int, int]
    soft_label: float


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What the stages learn from.

    `images`: N arrays (height, width, 3) uint8. `identifiers` (N, 5) int64. `captions`: those of
    each image. `soft_labels`: of each image the teacher's scores of its captions, float32 (equation
    7); None before scoring.
    """

    images: Sequence[ByteArray]
    identifiers: IntArray
    captions: Sequence[Sequence[str]]
    soft_labels: Sequence[FloatArray] | None = None
    visual: Tensor | None = None
    """(V, N, T, H) visual tokens of V views of each image, when the vision tower is frozen."""
    mismatched: Sequence[MismatchedPair] = ()
    """Of alignment; empty before the teacher has scored them."""
    vectors: VectorSet | None = None
    """For a model that reads vectors."""
    query_vectors: HalfArray | None = None
    """(m, D) the encoder's of the first m captions in corpus order, for a model with a query head:
    all of them, or as many as fit in memory."""

    def __len__(self) -> int:
        return len(self.images)


class ExampleDataset(Dataset[TrainingExample]):
    """The sequences of a stage, as the Trainer reads them."""

    def __init__(self, examples: Sequence[TrainingExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> TrainingExample:
        return self.examples[index]


def stage_examples(
    model: SigmaModel, data: TrainingSet, stage: Stage, seed: int
) -> list[TrainingExample]:
    """The sequences of one stage, in corpus order, and behind them the replay of earlier stages.

    The `image` of an example counts views first: image i in view v is v·N + i.
    """
    memorize = _memorize_examples(model, data, stage)
    if stage.name == "memorize":
        return memorize
    captions = _all_captions(data)
    held_out = set(held_out_rows(len(data), model.profile.held_out, seed).tolist())
    explained = [place for place in captions if place[0] not in held_out]
    cut = np.random.default_rng((seed, 6))
    if stage.name == "comprehend":
        examples = _comprehend(model, data, explained, stage, cut)
    elif model.projector is not None:
        examples = _align_vectors(model.projector.reading, model, data, stage, captions)
    else:
        examples = [_align(model, data, place, number) for number, place in enumerate(captions)]
        examples += [_judge(model, data, pair) for pair in data.mismatched]
    replayed = round(stage.replay * len(data))
    examples += _sampled(memorize, replayed, np.random.default_rng(seed))
    # Two generators: how many images are replayed does not change which captions are.
    count = round(stage.caption_replay * len(data))
    described = _sampled(explained, count, np.random.default_rng((seed, 1)))
    return examples + _comprehend(model, data, described, stage, cut)


def held_out_rows(images: int, share: float, seed: int) -> IntArray:
    """Rows of the images whose identifiers training never shows before a caption, ascending int64.

    Comprehension is measured on them: a caption that was shown would be recalled, not understood.
    The other stages learn them as any image. `share` is that of the profile; few images have none.
    """
    if images < _LEAST_IMAGES:
        return np.zeros(0, np.int64)
    count = min(_MOST_HELD_OUT, round(share * images))
    # A stream of random numbers apart from those that choose what is replayed and measured.
    order = np.random.default_rng((seed, 3)).permutation(images)
    return np.sort(order[:count]).astype(np.int64)


def _memorize_examples(model: SigmaModel, data: TrainingSet, stage: Stage) -> list[TrainingExample]:
    """Image → identifier, of every image in every view."""
    if model.projector is not None and model.projector.reading.pictures:
        own = _vector_examples(model, data, model.projector.reading)
        # As replay behind another stage each of them once: it takes what it wants of them.
        return own * (vector_views(stage, len(data)) if stage.name == "memorize" else 1)
    token_counts = _image_token_counts(model, data)
    views = 1 if data.visual is None else len(data.visual)
    examples: list[TrainingExample] = []
    for view in range(views):
        for row, identifier in enumerate(data.identifiers):
            image = view * len(data) + row
            examples.append(model.prompts.memorize(image, token_counts[row], identifier))
    return examples


def _image_token_counts(model: SigmaModel, data: TrainingSet) -> list[int]:
    """How many visual tokens each image has."""
    if not len(data):
        return []
    # Looking at one image is enough where all become squares of one size.
    if model.preprocessor.fixed_size:
        return model.preprocessor(data.images[:1]).token_counts(model.merge) * len(data)
    counts: list[int] = []
    for image in data.images:
        # One at a time: pixels of a whole corpus do not fit in memory at once.
        counts += model.preprocessor([image]).token_counts(model.merge)
    return counts


def _all_captions(data: TrainingSet) -> list[tuple[int, int]]:
    """(row of the image, number of the caption) of every caption, in corpus order."""
    places: list[tuple[int, int]] = []
    for row, captions in enumerate(data.captions):
        places += [(row, number) for number in range(len(captions))]
    return places


def _comprehend(
    model: SigmaModel,
    data: TrainingSet,
    places: Sequence[tuple[int, int]],
    stage: Stage,
    rng: np.random.Generator,
) -> list[TrainingExample]:
    """Identifier → caption, some behind as many codes as the stage says."""
    is_without = rng.random(len(places)) < stage.without_suffix
    lengths = np.where(is_without, LEVELS, LEVELS + 1)
    is_short = rng.random(len(places)) < stage.shortened
    lengths = np.where(is_short, rng.integers(0, LEVELS, len(places)), lengths)
    examples: list[TrainingExample] = []
    for (row, number), length in zip(places, lengths.tolist(), strict=True):
        codes = data.identifiers[row, :length].tolist()
        examples.append(model.prompts.comprehend(codes, data.captions[row][number]))
    return examples


def _align(
    model: SigmaModel, data: TrainingSet, place: tuple[int, int], query: int
) -> TrainingExample:
    """Caption → identifier; `query` is the place of the caption in the corpus."""
    row, number = place
    soft_label = None if data.soft_labels is None else float(data.soft_labels[row][number])
    example = model.prompts.align(data.captions[row][number], data.identifiers[row], soft_label)
    known = 0 if data.query_vectors is None else len(data.query_vectors)
    return replace(example, query=query) if query < known else example


def _vector_examples(
    model: SigmaModel, data: TrainingSet, reading: VectorReading
) -> list[TrainingExample]:
    """Vector of an image → identifier, of every image."""
    examples: list[TrainingExample] = []
    for row, identifier in enumerate(data.identifiers):
        examples.append(model.prompts.read_vector(row, reading.tokens, identifier))
    return examples


def _align_vectors(
    reading: VectorReading,
    model: SigmaModel,
    data: TrainingSet,
    stage: Stage,
    captions: Sequence[tuple[int, int]],
) -> list[TrainingExample]:
    """Vectors → identifiers: images in place of queries, and captions where there are any.

    The same sequence stands for all views of an image: noise is drawn when it is trained.
    """
    prompts = model.prompts
    images: list[TrainingExample] = []
    for row, identifier in enumerate(data.identifiers):
        images.append(prompts.read_query_vector(row, reading.tokens, identifier))
    texts: list[TrainingExample] = []
    for number, (row, caption) in enumerate(captions):
        text = data.captions[row][caption] if reading.with_text else ""
        place = len(data) + number
        texts.append(prompts.read_query_vector(place, reading.tokens, data.identifiers[row], text))
    views = vector_views(stage, len(data))
    return images * views + texts * max(1, round(views * len(images) / max(1, len(texts))))


def vector_views(stage: Stage, images: int) -> int:
    """Views of each image's vector in one epoch."""
    return max(1, round(stage.vector_views / max(1, images) / stage.epochs))


def _judge(model: SigmaModel, data: TrainingSet, pair: MismatchedPair) -> TrainingExample:
    row, number = pair.caption_of
    identifier = data.identifiers[pair.identifier_of]
    return model.prompts.judge(data.captions[row][number], identifier, pair.soft_label)


def _sampled(items: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """`count` of the items in random order, without repetition; all of them, if there are fewer."""
    order = rng.permutation(len(items))
    return [items[index] for index in order[:count].tolist()]
