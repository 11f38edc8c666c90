"""`sigma study latency` and `throughput`: Table 3 and Figure 4 of the paper in miniature.

What a query costs does not depend on how much the model has learnt, so it is trained for seconds.
The gallery is made of vectors of scenes with noise, posted where the codebook says. Times are CPU
time of one thread, which other work on the machine leaves as it is; the encoder of queries is
counted everywhere. Letters in shapes: N images, D embedding width.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.decoding.decoder import Decoder
from model.decoding.sequence_search import search_sequences
from model.identifiers.rivals.numeric import Numeric
from model.identifiers.rivals.scheme import SchemeImages
from model.network.base import SHIPPED
from model.network.encoder import Encoder
from model.progress import Progress
from model.retrieval.sequence_trie import SequenceTrie
from ops.peer_library import peer_library
from ops.study.learning import StudyGeneration, train_fully
from ops.study.paper_search import QUERY_BATCH, Measured
from ops.study.paper_sizes import REDUCED, PaperSizes
from ops.study.shared_models import prepare_corpus
from ops.study.study_config import study_profile
from ops.study.study_corpus import StudyCorpus
from ops.study.study_index import posting_rows
from ops.study.study_table import Column, Figures, StudyTable
from schemas.records import FloatArray, Posting
from schemas.retrieval_settings import RetrievalSettings
from workers.query.model_engine import ModelEngine
from workers.repository.follower import Changes, EmbeddingRows

# Images of an answer.
_DEPTH = 10

# Length of the noise that tells copies of a scene's vector apart.
_NOISE = 0.5

# Links of a node of FAISS's graph, its own default for good recall.
_LINKS = 32

# Milliseconds of a second.
_MS = 1e3

# A search of some texts.
Ask = Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class SpeedSizes:
    """Galleries, and queries that are asked in each."""

    galleries: tuple[int, ...] = (1_000, 10_000, 100_000)
    queries: int = 48
    beams: int = 20
    seeds: tuple[int, ...] = (0,)


# For tests.
REDUCED_SPEED = SpeedSizes(galleries=(100, 300), queries=4, beams=6)

_DEVIATIONS = (
    "CPU time of one thread on a machine without a GPU, with the `tiny` profile: ratios and slopes"
    " can be compared with the paper's, milliseconds cannot",
    "the gallery is synthetic, its images posted under one leaf each",
    "SIGMA here is the product's search, whose leaves fill with the gallery as long as the shape of"
    " the identifiers stays; the paper's search is the row of five tokens",
)

_TABLE_3 = (
    "Published (Table 3 of the paper; ms a query at 50K / 100K / 200K / 300K): CLIP with a vector"
    " index 0.95 /",
    "1.42 / 1.85 / 2.27; SIGMA with vLLM 20 / 20 / 20 / 20.",
)

_FIGURE_4 = (
    "Published (the text beside Figure 4 of the paper): CLIP falls to about a third from 1K to 100K"
    " images, SIGMA",
    "stays, at nearly twice the throughput of GRACE.",
)


def latency(sizes: SpeedSizes, progress: Progress) -> StudyTable:
    """One query after the other: median CPU milliseconds."""
    title = "What one query takes as the gallery grows (Table 3)"
    return _study("latency", title, "ms", sizes, _median_ms, _TABLE_3, progress)


def throughput(sizes: SpeedSizes, progress: Progress) -> StudyTable:
    """Queries in batches of sixteen: how many a CPU second."""
    title = "How many queries a second as the gallery grows (Figure 4)"
    return _study("throughput", title, "q/s", sizes, _per_second, _FIGURE_4, progress)


def _study(
    name: str,
    title: str,
    unit: str,
    sizes: SpeedSizes,
    measure: Callable[[Ask, Sequence[str]], float],
    published: Sequence[str],
    progress: Progress,
) -> StudyTable:
    rows: dict[str, list[Figures]] = {}
    with progress(name, len(sizes.seeds) * len(sizes.galleries)) as bar:
        for seed in sizes.seeds:
            model = _Model.train(seed)
            texts = model.texts(sizes.queries)
            measured: dict[str, Measured] = {}
            for size in sizes.galleries:
                for row, figure in _measured(model, size, seed, sizes.beams, measure, texts):
                    measured.setdefault(row, {})[f"{size}"] = figure
                bar.update(1)
            for row, figures in measured.items():
                rows.setdefault(row, []).append(figures)
    columns = tuple(Column(f"{size:,} images, {unit}", f"{size}", 1.0) for size in sizes.galleries)
    setting = f"{sizes.queries} queries, {sizes.beams} beams, one thread."
    return StudyTable(name, title, setting, sizes.seeds, columns, rows, {}, _DEVIATIONS, published)


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """A generation that was trained for seconds, and the scenes that it was trained on."""

    generation: StudyGeneration
    corpus: StudyCorpus
    sizes: PaperSizes

    @classmethod
    def train(cls, seed: int) -> "_Model":
        corpus = prepare_corpus(REDUCED.scenes(seed), SHIPPED)
        numbers = corpus.stream.arrivals(0)
        return cls(train_fully(SHIPPED, study_profile(), corpus, numbers, seed), corpus, REDUCED)

    @property
    def encoder(self) -> Encoder:
        return self.generation.checkpoint.encoder

    def texts(self, count: int) -> list[str]:
        """Queries, again from the start where there are fewer."""
        queries = self.corpus.stream.queries
        return [queries[number % len(queries)] for number in range(count)]

    def gallery(self, size: int, seed: int) -> FloatArray:
        """(N, D) unit vectors: those of scenes, each with noise of its own."""
        rng = np.random.default_rng((seed, size))
        own = self.corpus.embeddings
        noise = rng.standard_normal((size, own.shape[1])).astype(np.float32)
        vectors = own[rng.integers(0, len(own), size)] + _NOISE * noise / own.shape[1] ** 0.5
        unit: FloatArray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit.astype(np.float32)


def _measured(
    model: _Model,
    size: int,
    seed: int,
    beams: int,
    measure: Callable[[Ask, Sequence[str]], float],
    texts: Sequence[str],
) -> list[tuple[str, float]]:
    """Each row's figure for a gallery of that size."""
    vectors = model.gallery(size, seed)
    found: list[tuple[str, float]] = []
    with (
        tempfile.TemporaryDirectory(prefix="sigma-study-") as folder,
        closing(_filled_engine(model, vectors, Path(folder))) as engine,
    ):
        settings = RetrievalSettings(beams=beams)

        def product(asked: Sequence[str]) -> object:
            return engine.answer(asked, _DEPTH, settings)

        def five_tokens(asked: Sequence[str]) -> object:
            return engine.answer_paper(asked, _DEPTH, settings)

        found.append(("SIGMA, as the product searches", measure(product, texts)))
        found.append(("SIGMA, five tokens (the paper)", measure(five_tokens, texts)))
        decoder = engine.decoder
        trie = _numeric_trie(decoder, size)

        def grace(asked: Sequence[str]) -> object:
            return search_sequences(decoder, decoder.read_texts(asked), trie, beams)

        found.append(("GRACE numeric on this backbone", measure(grace, texts)))
    for name, ask in _vector_searches(model.encoder, vectors).items():
        found.append((name, measure(ask, texts)))
    return found


def _filled_engine(model: _Model, vectors: FloatArray, folder: Path) -> ModelEngine:
    """The product's engine with every image under the leaf that the codebook says."""
    checkpoint = model.generation.checkpoint
    engine = ModelEngine.open(1, checkpoint, folder)
    numbers = np.arange(len(vectors), dtype=np.int64)
    leaves = checkpoint.codebook.leaves(vectors).tolist()
    # In its leaf, as far as there are suffixes.
    taken: dict[int, int] = {}
    suffixes: list[int] = []
    for leaf in leaves:
        suffixes.append(taken.get(leaf, 0))
        taken[leaf] = suffixes[-1] + 1
    rows = posting_rows(numbers, [(Posting(leaf, 0.0),) for leaf in leaves], suffixes)
    nothing = np.zeros(len(numbers))
    embeddings = EmbeddingRows(
        numbers,
        vectors.astype(np.float16),
        nothing.astype(np.float32),
        nothing.astype(np.bool_),
    )
    engine.apply(Changes(rows, embeddings, deleted=np.empty(0, np.int64)))
    return engine


def _numeric_trie(decoder: Decoder, size: int) -> SequenceTrie:
    """Numbers of so many images, as GRACE's numeric identifiers have them."""
    nothing = np.zeros((size, 1), np.float32)
    images = SchemeImages(nothing, nothing[:, np.newaxis], [("",)] * size)
    prompts = decoder.sigma.prompts
    trie = SequenceTrie()
    for image, identified in enumerate(Numeric().fit(images, 0).trained):
        trie.add([*prompts.text(str(identified.picture)), prompts.end], image)
    return trie


def _vector_searches(encoder: Encoder, vectors: FloatArray) -> dict[str, Ask]:
    """What stands for CLIP: the encoder and all images, or an index of FAISS."""
    faiss = peer_library("faiss")
    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    graph = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
    for index in (flat, graph):
        index.add(np.ascontiguousarray(vectors))

    def exact(asked: Sequence[str]) -> object:
        scores = encoder.embed_texts(asked) @ vectors.T
        depth = min(_DEPTH, scores.shape[1])
        return np.argpartition(-scores, depth - 1, axis=1)[:, :depth]

    return {
        "encoder, all images compared": exact,
        "encoder, FAISS flat": lambda asked: flat.search(encoder.embed_texts(asked), _DEPTH),
        "encoder, FAISS HNSW": lambda asked: graph.search(encoder.embed_texts(asked), _DEPTH),
    }


def _median_ms(ask: Ask, texts: Sequence[str]) -> float:
    """Median CPU milliseconds of one query, after one that warms up."""
    ask(texts[:1])
    times: list[float] = []
    for text in texts:
        began = time.process_time()
        ask([text])
        times.append(time.process_time() - began)
    return _MS * float(np.median(times))


def _per_second(ask: Ask, texts: Sequence[str]) -> float:
    """Queries in a CPU second, after a batch that warms up."""
    ask(texts[:QUERY_BATCH])
    began = time.process_time()
    for start in range(0, len(texts), QUERY_BATCH):
        ask(texts[start : start + QUERY_BATCH])
    return len(texts) / max(1e-9, time.process_time() - began)
