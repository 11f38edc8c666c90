"""How the paper's experiments ask: images that were trained on and later ones, in one gallery.

A search by identifiers of any length serves rivals and our five tokens alike; beside it stands the
search of the product.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.decoding.decoder import Decoder
from model.decoding.sequence_search import FoundSequence, generate, search_sequences
from model.identifiers.codebook import pack_all
from model.identifiers.instance_suffixes import keep_suffixes
from model.network.base import SHIPPED
from model.network.checkpoint import load_checkpoint, save_checkpoint
from model.retrieval.recall import recall_at
from model.retrieval.sequence_trie import SequenceTrie
from ops.jobs.known_items import Rank, rank_of
from ops.study.learning import StudyGeneration, identifiers_of, train_as_product
from ops.study.paper_sizes import PaperSizes
from ops.study.shared_models import make_once
from ops.study.study_corpus import StudyCorpus
from ops.study.study_index import StudyIndex
from schemas.records import IntArray
from schemas.retrieval_settings import RetrievalSettings

# Queries that are read together, as many as the query worker takes at once.
QUERY_BATCH = 16

# Images of an answer that are looked at: the paper's cold start asks for twenty.
DEPTH = 20

# Figures of one variant that are still being measured.
Measured = dict[str, float | None]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Numbers of the images in the gallery, and of those that are asked for, by split."""

    gallery: IntArray
    """(N,)"""
    splits: Mapping[str, IntArray]
    """Each (n,)."""

    @classmethod
    def of(cls, corpus: StudyCorpus, sizes: PaperSizes) -> "Asked":
        """All images; as many of the trained ones are asked for as came later."""
        trained, later = corpus.stream.arrivals(0), corpus.stream.arrivals(1)
        splits = {"seen": trained[: sizes.later], "unseen": later}
        return cls(np.concatenate([trained, later]), splits)

    @property
    def asked(self) -> IntArray:
        """All that are asked for."""
        return np.concatenate(list(self.splits.values()))


def recall_figures(split: str, ranks: Sequence[Rank]) -> Measured:
    """Recall by the names of a table's columns."""
    return {f"{split} {name}": share for name, share in recall_at(ranks).items()}


def dense_figures(corpus: StudyCorpus, asked: Asked) -> Measured:
    """Recall of exact search with the same encoder over the same gallery."""
    figures: Measured = {"candidates": float(len(asked.gallery))}
    matrix = corpus.embeddings[asked.gallery]
    for split, numbers in asked.splits.items():
        scores = corpus.query_embeddings[numbers] @ matrix.T
        best = asked.gallery[np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]]
        ranks = [rank_of(row, number) for row, number in zip(best, numbers.tolist(), strict=True)]
        figures |= recall_figures(split, ranks)
    return figures


def sequence_figures(
    decoder: Decoder,
    trie: SequenceTrie,
    corpus: StudyCorpus,
    asked: Asked,
    beams: int,
    *,
    reranked: bool,
) -> Measured:
    """Recall of a search by identifiers of any length, and what the queries took."""
    figures: Measured = {}
    invalid: list[bool] = []
    passes: list[int] = []
    candidates: list[int] = []
    end = decoder.sigma.prompts.end
    for split, numbers in asked.splits.items():
        ranks: list[Rank] = []
        for keys in _batches(numbers):
            prompt = decoder.read_texts([corpus.stream.queries[key] for key in keys])
            answers = search_sequences(decoder, prompt, trie, beams)
            written = generate(decoder, prompt, end, trie.depth)
            invalid += [not trie.names_an_image(row) for row in written]
            passes.append(answers.passes)
            for key, found in zip(keys, answers.found, strict=True):
                images = _ordered(found, corpus, key, reranked)
                candidates.append(len(images))
                ranks.append(rank_of(images[:DEPTH], key))
        figures |= recall_figures(split, ranks)
    figures["invalid"] = float(np.mean(invalid))
    figures["passes"] = float(np.mean(passes))
    figures["candidates"] = float(np.mean(candidates))
    return figures


def product_generation(
    corpus: StudyCorpus, sizes: PaperSizes, seed: int, models: Path
) -> StudyGeneration:
    """A generation as the product trains it, made once for all experiments that ask for it."""
    numbers = corpus.stream.arrivals(0)

    def save(folder: Path) -> None:
        trained = train_as_product(SHIPPED, corpus, numbers, seed)
        save_checkpoint(trained.checkpoint, folder)

    checkpoint = load_checkpoint(make_once(models / f"product-{sizes.trained}-{seed}", save))
    return StudyGeneration(
        checkpoint, numbers, checkpoint.codebook.encode(corpus.embeddings[numbers])
    )


@contextmanager
def open_gallery(
    generation: StudyGeneration, corpus: StudyCorpus, asked: Asked, settings: RetrievalSettings
) -> Iterator[StudyIndex]:
    """The product's index of a gallery: the generation's own images, then later ones assigned."""
    with tempfile.TemporaryDirectory(prefix="sigma-study-") as folder:
        index = StudyIndex.open(generation.checkpoint, corpus, Path(folder), settings)
        try:
            is_trained = np.isin(generation.numbers, asked.gallery)
            trained = generation.numbers[is_trained]
            if len(trained):
                index.load(trained, generation.codes[is_trained])
            index.append(np.setdiff1d(asked.gallery, generation.numbers))
            yield index
        finally:
            index.close()


def product_figures(index: StudyIndex, asked: Asked) -> Measured:
    """Recall of the product's search, and the images that it scored for a query."""
    figures: Measured = {}
    candidates: list[int] = []
    for split, numbers in asked.splits.items():
        ranks: list[Rank] = []
        for keys in _batches(numbers):
            texts = [index.corpus.stream.queries[key] for key in keys]
            for key, answer in zip(
                keys, index.engine.answer(texts, DEPTH, index.settings), strict=True
            ):
                ranks.append(rank_of(answer.image_keys, key))
                candidates.append(answer.candidates)
        figures |= recall_figures(split, ranks)
    return figures | {"candidates": float(np.mean(candidates))}


def five_token_figures(
    index: StudyIndex, generation: StudyGeneration, asked: Asked, beams: int
) -> Measured:
    """Recall of the paper's own search over primary identifiers, all five tokens decoded."""
    trie = _five_token_trie(index, generation, asked)
    decoder = index.engine.decoder
    return sequence_figures(decoder, trie, index.corpus, asked, beams, reranked=False)


def four_code_figures(
    index: StudyIndex, generation: StudyGeneration, asked: Asked, beams: int
) -> Measured:
    """Recall of the four codes without a suffix, as rivals' codes are searched.

    All images of a leaf share a token row; those of one leaf come in the order of their numbers.
    """
    trie = SequenceTrie()
    levels = index.checkpoint.sigma.levels
    for image in sorted(asked.gallery.tolist()):
        codes = index.codes[image].tolist()
        trie.add([levels[level][code] for level, code in enumerate(codes)], image)
    decoder = index.engine.decoder
    return sequence_figures(decoder, trie, index.corpus, asked, beams, reranked=False)


def _five_token_trie(index: StudyIndex, generation: StudyGeneration, asked: Asked) -> SequenceTrie:
    """Identifiers of trained images as they learnt them, of later ones by the model."""
    shape = index.engine.shape
    suffix_of: dict[int, int] = {}
    learnt = identifiers_of(generation.codes, shape)
    for number, identifier in zip(generation.numbers.tolist(), learnt, strict=True):
        suffix_of[number] = int(identifier[4])
    leaves = pack_all(index.codes[asked.gallery], shape)
    kept = np.array([suffix_of.get(number, -1) for number in asked.gallery.tolist()], np.int64)
    placed = keep_suffixes(leaves, kept, shape)
    trie = SequenceTrie()
    levels = index.checkpoint.sigma.levels
    images = asked.gallery.tolist()
    rows = zip(placed.leaves.tolist(), placed.suffixes.tolist(), images, strict=True)
    for leaf, suffix, image in rows:
        # An image beyond the shape has no token, and this search does not find it.
        if suffix < shape.suffixes:
            identifier = (*shape.unpack(leaf), suffix)
            trie.add([levels[level][code] for level, code in enumerate(identifier)], image)
    return trie


def _ordered(
    found: Sequence[FoundSequence], corpus: StudyCorpus, query: int, reranked: bool
) -> IntArray:
    """Images of the identifiers that were found, best first."""
    different = dict.fromkeys(image for each in found for image in each.images)
    images = np.array(list(different), np.int64)
    if not reranked or not len(images):
        return images
    cosines = corpus.embeddings[images] @ corpus.query_embeddings[query]
    return images[np.argsort(-cosines, kind="stable")]


def _batches(numbers: IntArray) -> Iterator[list[int]]:
    for start in range(0, len(numbers), QUERY_BATCH):
        yield numbers[start : start + QUERY_BATCH].tolist()
