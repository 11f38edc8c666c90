"""Stage gates: what a training stage has learnt, and the bounds that it must meet."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, log

import numpy as np

from model.decoding.assign import BeamSearchAssigner
from model.decoding.decoder import Decoder
from model.identifiers.codebook import pack_all
from model.network.encoder import Encoder
from model.network.profiles import StageName
from model.network.query_head import QueryHeadEncoder
from model.network.sigma import SigmaModel
from model.network.sketch import Sketch
from model.retrieval.guidance import READING_VECTORS
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.recall import wilson
from model.retrieval.search import SearchIndex, search_embedded, search_exact
from model.retrieval.sketches import SketchesBySlot
from model.retrieval.trie import Trie
from model.training.comprehension import compare_identifiers, compare_similarities
from model.training.training_set import TrainingSet, held_out_rows
from model.training.vector_set import picture_as_text
from schemas.identifiers import LEVELS
from schemas.records import BoolArray, ByteArray, FloatArray, HalfArray, IntArray
from schemas.retrieval_settings import RetrievalSettings

# What a stage was measured at, by name: `samples`, `images` and `chance`, and the stage's own.
Figures = dict[str, float]

# Samples that are decoded at once.
_BATCH = 16

# An image counts as found among this many results; the figure's name, R@10, is stored.
_DEPTH = 10

# Fewer say nothing about a share.
_MIN_SAMPLES = 32

# Captions that are compared behind own and exchanged identifiers: each is generated too.
_MOST_PAIRS = 100

# Share of exchanged identifiers that a model which ignores them prefers.
CHANCE = 0.5

# At most one in this many images is a sample, so that measuring takes little time.
_SAMPLED_SHARE = 10


@dataclass(frozen=True, slots=True)
class Gates:
    """How many samples a stage is measured on, and how bad it may be.

    Identifiers and recall must have come `progress` of the way from chance to perfect. In a refresh
    they may be `drop` below the parent's, and the captions' loss `rise` (nats a token) above it.

    An image's own identifier must predict its caption better than another image's in at least
    `wins` of the pairs, and the soft-label head must prefer it as often as `similarity_wins`;
    chance is half of them, and 0 asks for nothing. A refresh may be `drop` below its parent, and is
    never asked for more than the parent had: what a full training did not teach, it cannot keep.
    With fewer than `head_images` images the head sees too few pairs that do not belong together
    for a first training to be judged by it.

    A share counts as below its bound only if its interval, of `z` standard errors, is: few samples
    shall not stop a good stage. With fewer than `images` images the first two stages are a few
    steps of the optimizer each, so only finite figures are asked of them; alignment is always
    judged.
    """

    sample: int = 200
    progress: float = 0.1
    drop: float = 0.1
    rise: float = 0.5
    wins: float = 0.7
    similarity_wins: float = 0.6
    z: float = 1.96
    images: int = 500
    head_images: int = 2000


@dataclass(frozen=True, slots=True)
class StageProbe:
    """What stages are measured with.

    `data`: the N training images. `queries`: one text for each, a caption that training does not
    show where there is one, empty where there is none at all. `embeddings` (N, D) float16: the
    ranking embeddings.
    """

    data: TrainingSet
    queries: Sequence[str]
    embeddings: HalfArray
    encoder: Encoder
    retrieval: RetrievalSettings = RetrievalSettings()


def evaluate_stage(
    name: StageName, sigma: SigmaModel, probe: StageProbe, gates: Gates, seed: int
) -> Figures:
    """The figures of a stage that was just trained, on the same samples for the same seed."""
    images = len(probe.data)
    count = min(gates.sample, max(_MIN_SAMPLES, images // _SAMPLED_SHARE), images)
    # A stream of random numbers apart from those that choose what is replayed.
    order = np.random.default_rng((seed, 2)).permutation(images)
    rows = np.sort(order[:count])
    sigma.eval()
    figures: Figures = {"samples": float(count), "images": float(images)}
    if name == "memorize":
        return figures | _measure_memorized(sigma, probe, rows)
    if name == "comprehend":
        return _measure_comprehended(sigma, probe, seed) | figures
    figures |= _measure_aligned(sigma, probe, rows, seed)
    return figures | _measure_language(sigma, probe, rows, seed)


def gate_failures(
    name: StageName, figures: Mapping[str, float], parent: Mapping[str, float] | None, gates: Gates
) -> list[str]:
    """Why a stage does not pass its gate, in sentences; empty when it does.

    `parent` are the same figures of the generation that a refresh started from.
    """
    not_finite = [figure for figure, value in figures.items() if not isfinite(value)]
    if not_finite:
        return [f"{figure} is not finite; lower the learning rate" for figure in not_finite]
    few_images = parent is None and figures["images"] < gates.images
    if name == "memorize":
        return [] if few_images else _share_failures("id1", figures, parent, gates)
    if name == "comprehend":
        if few_images:
            return []
        failures = _loss_failures(figures, parent, gates)
        return failures + _language_failures("", figures, parent, gates)
    failures = _share_failures("R@10", figures, parent, gates, perfect=figures.get("dense", 1.0))
    if not few_images:
        failures += _encoder_failures(figures, gates)
        failures += _language_failures("caption_", figures, parent, gates)
    if parent is not None or figures["images"] >= gates.head_images:
        bound = _win_bound("similarity_wins", gates.similarity_wins, parent, gates)
        failures += _win_failures("similarity_wins", "samples", bound, figures, gates)
    return failures


def _language_failures(
    prefix: str, figures: Mapping[str, float], parent: Mapping[str, float] | None, gates: Gates
) -> list[str]:
    """Why identifiers do not carry language; figures of the captions have this prefix."""
    name = f"{prefix}wins"
    bound = _win_bound(name, gates.wins, parent, gates)
    failures = _win_failures(name, "pairs", bound, figures, gates)
    own = figures.get(f"{prefix}cider")
    shuffled = figures.get(f"{prefix}shuffled_cider")
    # Equal where the model says one sentence of every identifier. Of few captions, or after a few
    # steps, either may be the greater by luck.
    many = figures.get("pairs", 0.0) >= _MIN_SAMPLES and figures["images"] >= gates.images
    if many and bound > CHANCE and own is not None and shuffled is not None and own <= shuffled:
        failures.append(
            f"captions of own identifiers must score above those of other images, got CIDEr-D "
            f"{own:.2f} and {shuffled:.2f}; train longer, or with more images"
        )
    return failures


def _win_bound(
    figure: str, asked: float, parent: Mapping[str, float] | None, gates: Gates
) -> float:
    """How often own identifiers must win; 0 where the parent was not measured at it."""
    if parent is None:
        return asked
    return min(asked, max(0.0, parent.get(figure, 0.0) - gates.drop))


def _win_failures(
    figure: str, count: str, bound: float, figures: Mapping[str, float], gates: Gates
) -> list[str]:
    """Why own identifiers do not win over exchanged ones; nothing where it was not measured.

    `count` is the figure that tells how many pairs were compared.
    """
    share = figures.get(figure)
    if share is None:
        return []
    pairs = int(figures[count])
    _, upper = wilson(round(share * pairs), pairs, gates.z)
    if upper >= bound:
        return []
    return [
        f"{figure} must be at least {bound:.2f}, got {share:.2f} over {pairs} pairs of an own and "
        "an exchanged identifier; train longer, or with more images"
    ]


def _loss_failures(
    figures: Mapping[str, float], parent: Mapping[str, float] | None, gates: Gates
) -> list[str]:
    bound = figures["chance"]
    if parent is not None and "loss" in parent:
        bound = min(bound, parent["loss"] + gates.rise)
    if figures["loss"] <= bound:
        return []
    return [f"loss must be at most {bound:.2f} a token, got {figures['loss']:.2f}; train longer"]


def _encoder_failures(figures: Mapping[str, float], gates: Gates) -> list[str]:
    """Why nothing could be learnt from the encoder: by itself it finds no more than chance does."""
    dense = figures.get("dense")
    if dense is None or gates.progress <= 0:
        return []
    samples = int(figures["asked"])
    lower, _ = wilson(round(dense * samples), samples, gates.z)
    if lower > figures["chance"]:
        return []
    return [
        f"exact search with the encoder must find more than chance, {figures['chance']:.3f}, got "
        f"R@10 {dense:.3f} over {samples} queries; it does not know these texts: train with "
        "another --encoder"
    ]


def _share_failures(
    figure: str,
    figures: Mapping[str, float],
    parent: Mapping[str, float] | None,
    gates: Gates,
    perfect: float = 1.0,
) -> list[str]:
    """Why a share is too low. `perfect` is the most that could be had."""
    share = figures[figure]
    chance = figures["chance"]
    bound = chance + gates.progress * (max(perfect, chance) - chance)
    if parent is not None:
        bound = max(bound, _expected_of(parent, figure, perfect) - gates.drop)
    samples = int(figures["samples"])
    _, upper = wilson(round(share * samples), samples, gates.z)
    if upper >= bound:
        return []
    return [
        f"{figure} must be at least {bound:.3f}, got {share:.3f} over {samples} samples; "
        "train longer"
    ]


def _expected_of(parent: Mapping[str, float], figure: str, perfect: float) -> float:
    """The parent's share, or as much of `perfect` as it was of what exact search found then.

    A refresh is measured on other images. Those that an encoder learnt from it finds by far more
    often than any that came later.
    """
    before = parent.get("dense", 0.0)
    return parent[figure] * (min(1.0, perfect / before) if before else 1.0)


def _measure_memorized(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> Figures:
    """How often the model gives an image its id1 and its leaf.

    Chance is always to name the most frequent id1.
    """
    shape = sigma.profile.shape
    assigner = BeamSearchAssigner(Decoder(sigma), postings=1)
    parts: list[IntArray] = []
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        images: list[ByteArray] = []
        if not assigner.reads_vectors:
            images = [probe.data.images[row] for row in batch.tolist()]
        leaves, _ = assigner.search(images, probe.embeddings[batch].astype(np.float32))
        parts.append(leaves[:, 0])
    assigned = np.concatenate(parts)
    expected = pack_all(probe.data.identifiers[rows, :LEVELS], shape)
    below_id1 = shape.leaves // shape.codes[0]
    expected_id1 = expected // below_id1
    return {
        "id1": float((assigned // below_id1 == expected_id1).mean()),
        "leaf": float((assigned == expected).mean()),
        "chance": float(np.bincount(expected_id1).max() / len(expected_id1)),
    }


def _measure_comprehended(sigma: SigmaModel, probe: StageProbe, seed: int) -> Figures:
    """Captions behind their identifiers, own and exchanged, of images held out of the stage.

    Chance of the loss is to know nothing, not even which words are frequent.
    """
    figures = _compare(sigma, probe, seed)
    return figures | {"chance": log(len(sigma.tokenizer))}


def _measure_language(sigma: SigmaModel, probe: StageProbe, rows: IntArray, seed: int) -> Figures:
    """What alignment has left of the captions, and what the soft-label head has learnt.

    Nothing where no image has captions.
    """
    figures: Figures = {}
    rows = rows[_has_query(probe)[rows]]
    if not len(rows):
        return figures
    for name, value in _compare(sigma, probe, seed).items():
        figures[name if name == "pairs" else f"caption_{name}"] = value
    if sigma.projector is not None:
        # The soft-label head is taught by texts, which this model does not read.
        return figures
    texts = [probe.queries[row] for row in rows.tolist()]
    similarity = compare_similarities(sigma, probe.data.identifiers[rows], texts, seed)
    figures["similarity"] = similarity.own
    figures["mismatched_similarity"] = similarity.mismatched
    # The paper's head sees no pair that does not belong together, so nothing is asked of it then.
    if sigma.profile.stage("align").mismatched:
        figures["similarity_wins"] = similarity.wins
    return figures


def _compare(sigma: SigmaModel, probe: StageProbe, seed: int) -> Figures:
    images = len(probe.data)
    has_query = _has_query(probe)
    rows = held_out_rows(images, sigma.profile.held_out, seed)
    rows = rows[has_query[rows]]
    if not len(rows):
        # None was spared: identifiers that were shown, before a caption that may not have been.
        order = np.random.default_rng((seed, 3)).permutation(images)
        order = order[has_query[order]]
        rows = np.sort(order[: max(_MIN_SAMPLES, min(_MOST_PAIRS, images // _SAMPLED_SHARE))])
    references: list[tuple[str, ...]] = []
    for row in rows.tolist():
        references.append((*probe.data.captions[row], probe.queries[row]))
    compared = compare_identifiers(
        sigma,
        probe.data.identifiers[rows],
        [probe.queries[row] for row in rows.tolist()],
        references,
        seed,
    )
    figures = {name: float(value) for name, value in asdict(compared).items()}
    return {"pairs": float(len(rows))} | figures


def _measure_aligned(sigma: SigmaModel, probe: StageProbe, rows: IntArray, seed: int) -> Figures:
    """Known-item recall among the training images, each with one posting.

    They are searched as a query worker does. An image without captions is asked for by its own
    vector with the noise of training, where the model reads vectors, and else not at all. A model
    that reads texts has no guide here: it would hide a decoder that has learnt nothing. `dense`
    is what exact search with the encoder finds, `asked` how many were asked for.
    """
    decoder = Decoder(sigma)
    trie = Trie(sigma.profile.shape, decoder.device)
    count = len(probe.data)
    leaves = pack_all(probe.data.identifiers[:, :LEVELS], sigma.profile.shape)
    suffixes = probe.data.identifiers[:, LEVELS]
    trie.insert(leaves, np.arange(count), np.zeros(count, np.float32), suffixes)
    means: PrefixMeans | None = None
    if sigma.projector is not None:
        means = PrefixMeans(sigma.profile.shape, probe.encoder.width, decoder.device)
        means.add(leaves, probe.embeddings.astype(np.float32))
    sketches = SketchesBySlot(Sketch.fit(probe.embeddings, seed))
    sketches.put(np.arange(count), probe.embeddings)
    index = SearchIndex(
        decoder, probe.encoder, trie, probe.embeddings, means, READING_VECTORS, sketches=sketches
    )
    if sigma.projector is None:
        rows = rows[_has_query(probe)[rows]]
    hits = 0
    dense_hits = 0
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        texts = [probe.queries[row] for row in batch.tolist()]
        vectors = query_vectors(sigma, probe, batch)
        asked_with = vectors
        if sigma.query_head is not None:
            # As a query worker asks; the encoder stays the yardstick.
            asked_with = QueryHeadEncoder(sigma, sigma.query_head).embed_texts(texts)
        results = search_embedded(index, texts, asked_with, _DEPTH, probe.retrieval)
        exact = search_exact(trie, probe.embeddings, vectors, _DEPTH)
        for row, result, best in zip(batch.tolist(), results, exact, strict=True):
            hits += row in result.slots
            dense_hits += row in best.slots
    asked = max(1, len(rows))
    return {
        "R@10": hits / asked,
        "dense": dense_hits / asked,
        "asked": float(len(rows)),
        "chance": min(1.0, _DEPTH / count),
    }


def query_vectors(sigma: SigmaModel, probe: StageProbe, rows: IntArray) -> FloatArray:
    """(B, D) vectors to ask for B rows with: of their texts, or their own with noise without."""
    texts = [probe.queries[row] for row in rows.tolist()]
    vectors = probe.encoder.embed_texts(texts)
    projector = sigma.projector
    if projector is None:
        return vectors
    for position, row in enumerate(rows.tolist()):
        if not texts[position]:
            own = probe.embeddings[row].astype(np.float32)
            vectors[position] = picture_as_text(projector, own, row)
    return vectors


def _has_query(probe: StageProbe) -> BoolArray:
    """(N,) which images have a text to measure with."""
    return np.array([bool(text) for text in probe.queries], np.bool_)
