"""A rival's model: trained on the same backbone, data and number of steps as ours.

It learns image → identifier, then caption → identifier with a replay of the first, as GRACE does;
ours has a stage between them, whose steps the rival takes in its second stage.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.decoding.decoder import Decoder
from model.identifiers.rivals.scheme import FittedScheme, Identifier, Scheme, SchemeImages
from model.network.base import Base
from model.network.parts import parts_from_base
from model.network.profiles import Profile, Stage
from model.network.prompts import TrainingExample
from model.network.sigma import SigmaModel
from model.network.symbols import add_symbols
from model.retrieval.sequence_trie import SequenceTrie
from model.training.stage_trainer import stage_steps
from model.training.stages import run_examples
from model.training.training_set import TrainingSet, stage_examples
from ops.study.learning import training_set
from ops.study.study_corpus import StudyCorpus
from schemas.records import FloatArray, IntArray

# Quarters of a picture along each side.
_SIDE = 2


@dataclass(frozen=True, slots=True, eq=False)
class RivalModel:
    """A trained rival."""

    scheme: Scheme
    fitted: FittedScheme
    decoder: Decoder
    symbols: Sequence[int]
    """Token of each symbol."""
    seconds: float
    """CPU seconds of fitting and training."""

    def tokens(self, identifier: Identifier) -> list[int]:
        """How the model spells an identifier."""
        if isinstance(identifier, str):
            prompts = self.decoder.sigma.prompts
            return [*prompts.text(identifier), prompts.end]
        return [self.symbols[symbol] for symbol in identifier]

    def trie(self) -> SequenceTrie:
        """Of the training images, numbered from 0."""
        trie = SequenceTrie()
        for image, identified in enumerate(self.fitted.trained):
            for identifier in identified.different:
                trie.add(self.tokens(identifier), image)
        return trie


def scheme_images(corpus: StudyCorpus, numbers: IntArray, *, captions: bool) -> SchemeImages:
    """What schemes see of images (n,); those that come later are without captions."""
    texts = [corpus.stream.captions[number] for number in numbers.tolist()] if captions else []
    vectors: list[FloatArray] = []
    if captions:
        embedded = corpus.encoder.embed_texts([text for own in texts for text in own])
        vectors = np.split(embedded, np.cumsum([len(own) for own in texts])[:-1])
    return SchemeImages(corpus.embeddings[numbers], _regions(corpus, numbers), texts, vectors)


def _regions(corpus: StudyCorpus, numbers: IntArray) -> FloatArray:
    """(n, R, H) means of the visual tokens of each quarter of the pictures as they are."""
    states = corpus.visual[0, numbers].numpy()  # (n, T, H), rows of a square
    side = round(states.shape[1] ** 0.5)
    grid = states.reshape(len(states), side, side, -1)
    half = side // _SIDE
    quarters = []
    for top in range(_SIDE):
        for left in range(_SIDE):
            part = grid[:, top * half : (top + 1) * half, left * half : (left + 1) * half]
            quarters.append(part.mean((1, 2)))
    return np.stack(quarters, axis=1).astype(np.float32)


def train_rival(
    base: Path, profile: Profile, corpus: StudyCorpus, numbers: IntArray, scheme: Scheme, seed: int
) -> RivalModel:
    """Fit a scheme to images (n,), and train a fresh model on what it says."""
    began = time.process_time()
    fitted = scheme.fit(scheme_images(corpus, numbers, captions=True), seed)
    sigma = parts_from_base(Base.load(base), profile).sigma
    symbols = add_symbols(sigma, fitted.symbols)
    rival = RivalModel(scheme, fitted, Decoder(sigma), symbols, 0.0)
    # Our identifiers, which only tell how many sequences our stages have.
    data = training_set(corpus, numbers, np.zeros((len(numbers), 5), np.int64))
    memorized = _memorized(rival, sigma, data)
    aligned = _aligned(rival, sigma, data)
    memorize, align = profile.stage("memorize"), profile.stage("align")
    rng = np.random.default_rng(seed)
    replayed = rng.permutation(len(memorized))[: round(align.replay * len(data))]
    aligned += [memorized[row] for row in replayed.tolist()]
    with tempfile.TemporaryDirectory(prefix="sigma-rival-") as scratch:
        folder = Path(scratch) / "training"
        run_examples(sigma, data, memorize, memorized, folder, seed=seed, checkpoints=0)
        longer = _as_long(sigma, data, profile, len(aligned), seed)
        run_examples(sigma, data, longer, aligned, folder, seed=seed, checkpoints=0)
    sigma.eval()
    return replace(rival, seconds=time.process_time() - began)


def _memorized(rival: RivalModel, sigma: SigmaModel, data: TrainingSet) -> list[TrainingExample]:
    """Image → identifier, in every view."""
    assert data.visual is not None  # a study's corpus has visual tokens
    views, images, count, _ = data.visual.shape
    prompt = sigma.prompts.image_prompt(count)
    examples: list[TrainingExample] = []
    for view in range(views):
        for row, identified in enumerate(rival.fitted.trained):
            tokens = (*prompt, *rival.tokens(identified.picture))
            examples.append(TrainingExample(tokens, len(prompt), image=view * images + row))
    return examples


def _aligned(rival: RivalModel, sigma: SigmaModel, data: TrainingSet) -> list[TrainingExample]:
    """Caption → identifier."""
    examples: list[TrainingExample] = []
    for captions, identified in zip(data.captions, rival.fitted.trained, strict=True):
        for text, identifier in zip(captions, identified.captions, strict=True):
            prompt = sigma.prompts.query_prompt(text)
            tokens = (*prompt, *rival.tokens(identifier))
            examples.append(TrainingExample(tokens, len(prompt)))
    return examples


def _as_long(
    sigma: SigmaModel, data: TrainingSet, profile: Profile, examples: int, seed: int
) -> Stage:
    """The alignment, so long that the rival sees as many sequences as our last two stages."""
    sequences = 0
    for stage in profile.stages[1:]:
        own = len(stage_examples(sigma, data, stage, seed))
        sequences += stage.batch * stage_steps(stage, own)
    return replace(profile.stage("align"), epochs=sequences / examples)
