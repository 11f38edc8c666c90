"""`sigma study rivals`: identifiers of other papers and ours, same backbone, data and budget.

The gallery holds the images that were trained on and those that came later. A search sees both.
"""

import time
from collections.abc import Mapping, Sequence

from model.decoding.decoder import Decoder
from model.decoding.sequence_search import generate
from model.identifiers.rivals.scheme import Identifier
from model.identifiers.rivals.schemes import SCHEMES
from model.network.base import SHIPPED
from model.progress import Progress
from ops.study.learning import train_fully
from ops.study.paper_search import (
    Asked,
    dense_figures,
    five_token_figures,
    four_code_figures,
    open_gallery,
    product_figures,
    sequence_figures,
)
from ops.study.paper_sizes import PaperSizes
from ops.study.rival_model import RivalModel, scheme_images, train_rival
from ops.study.shared_models import prepare_corpus
from ops.study.study_config import study_profile
from ops.study.study_corpus import StudyCorpus
from ops.study.study_table import Column, Figures, StudyTable
from schemas.records import IntArray
from schemas.retrieval_settings import RetrievalSettings

# Pictures that are read together.
_BATCH = 16

# Tokens of a generated identifier: a caption of the scenes has fewer.
_MOST_TOKENS = 48

_COLUMNS = (
    Column("seen R@1", "seen R@1"),
    Column("R@10", "seen R@10"),
    Column("unseen R@1", "unseen R@1"),
    Column("R@10", "unseen R@10"),
    Column("invalid", "invalid"),
    Column("passes", "passes", 1.0),
    Column("candidates", "candidates", 1.0, 0),
    Column("training CPU s", "seconds", 1.0, 0),
)

_FOUR_CODES = "SIGMA, four codes"

_DEVIATIONS = (
    "backbone, pictures and captions are those of the miniature; none of the rivals' own",
    "every rival learns picture → identifier and caption → identifier, as long as ours learns all"
    " of its stages; stages that a paper has beyond these are left out",
    "invalid: queries whose likeliest token row, decoded without the trie, names no image; under"
    " the trie no answer is invalid",
    "passes: of the model for one query, all beams together; candidates: images that were scored",
)


def rivals(sizes: PaperSizes, progress: Progress) -> StudyTable:
    """Train and ask all of them for each seed."""
    rows: dict[str, list[Figures]] = {}
    with progress("rivals", len(sizes.seeds) * (len(SCHEMES) + 1)) as bar:
        for seed in sizes.seeds:
            corpus = prepare_corpus(sizes.scenes(seed), SHIPPED)
            asked = Asked.of(corpus, sizes)
            for name, figures in _sigma(corpus, asked, sizes, seed).items():
                rows.setdefault(name, []).append(figures)
            bar.update(1)
            for scheme in SCHEMES:
                trained = corpus.stream.arrivals(0)
                rival = train_rival(SHIPPED, study_profile(), corpus, trained, scheme, seed)
                rows.setdefault(scheme.name, []).append(_rival_figures(rival, corpus, asked, sizes))
                bar.update(1)
            rows.setdefault("exact dense search", []).append(dense_figures(corpus, asked))
    notes = {_FOUR_CODES: "the same model, no suffix: all images of a leaf are named at once"}
    for scheme in SCHEMES:
        deviation = f" Not as there: {scheme.deviation}." if scheme.deviation else ""
        notes[scheme.name] = f"{scheme.source}. Later images get {scheme.later}.{deviation}"
    return StudyTable(
        "rivals",
        "Identifiers of other papers on our backbone",
        sizes.told,
        sizes.seeds,
        _COLUMNS,
        rows,
        notes,
        _DEVIATIONS,
    )


def _rival_figures(
    rival: RivalModel, corpus: StudyCorpus, asked: Asked, sizes: PaperSizes
) -> Figures:
    trie = rival.trie()
    later = asked.splits["unseen"]
    for image, rows in zip(later.tolist(), _later_rows(rival, corpus, later), strict=True):
        for tokens in rows:
            trie.add(tokens, image)
    figures = sequence_figures(
        rival.decoder, trie, corpus, asked, sizes.beams, reranked=rival.scheme.reranked
    )
    return figures | {"seconds": rival.seconds}


def _later_rows(rival: RivalModel, corpus: StudyCorpus, numbers: IntArray) -> list[list[list[int]]]:
    """Token rows of the identifiers of each later image (n,)."""
    if rival.scheme.writes:
        return [[row] for row in _written(rival.decoder, corpus, numbers)]
    if rival.fitted.assign is None:
        return [[] for _ in numbers]
    assigned = rival.fitted.assign(scheme_images(corpus, numbers, captions=False))

    def spelled(identifiers: Sequence[Identifier]) -> list[list[int]]:
        return [rival.tokens(each) for each in identifiers]

    return [spelled(own) for own in assigned]


def _written(decoder: Decoder, corpus: StudyCorpus, numbers: IntArray) -> list[list[int]]:
    """The identifiers that the model writes of pictures (n,), each ended."""
    sigma = decoder.sigma
    rows: list[list[int]] = []
    for start in range(0, len(numbers), _BATCH):
        pixels = list(corpus.stream.pixels[numbers[start : start + _BATCH]])
        prompt = decoder.read_images(sigma.preprocessor(pixels).to(decoder.device))
        for row in generate(decoder, prompt, sigma.prompts.end, _MOST_TOKENS):
            # One that was cut off is an identifier too, once it ends.
            rows.append(row if row[-1] == sigma.prompts.end else [*row, sigma.prompts.end])
    return rows


def _sigma(
    corpus: StudyCorpus, asked: Asked, sizes: PaperSizes, seed: int
) -> Mapping[str, Figures]:
    """Ours by five tokens and by four codes, searched as rivals are, and as the product does."""
    began = time.process_time()
    numbers = corpus.stream.arrivals(0)
    generation = train_fully(SHIPPED, study_profile(), corpus, numbers, seed)
    seconds: dict[str, float | None] = {"seconds": time.process_time() - began}
    settings = RetrievalSettings(beams=sizes.beams)
    with open_gallery(generation, corpus, asked, settings) as index:
        five = five_token_figures(index, generation, asked, sizes.beams)
        four = four_code_figures(index, generation, asked, sizes.beams)
        product = product_figures(index, asked)
    return {
        "SIGMA, five tokens (the paper)": five | seconds,
        _FOUR_CODES: four | seconds,
        "SIGMA, as the product searches": product | seconds,
    }
