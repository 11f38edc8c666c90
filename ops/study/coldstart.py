"""`sigma study coldstart`: images of a near and of a far domain, indexed without training (Sec. 5).

Near are scenes of the words that training showed, far are scenes of later words: other shapes,
colours, grounds and styles.
"""

import numpy as np

from model.network.base import SHIPPED
from model.progress import Progress
from ops.study.learning import train_fully
from ops.study.paper_search import (
    Asked,
    Measured,
    dense_figures,
    five_token_figures,
    open_gallery,
    product_figures,
)
from ops.study.paper_sizes import PaperSizes
from ops.study.shared_models import prepare_corpus
from ops.study.streams import Stream
from ops.study.study_config import study_profile
from ops.study.study_table import Column, Figures, StudyTable, rows_of_seeds
from schemas.records import IntArray
from schemas.retrieval_settings import RetrievalSettings

_COLUMNS = (
    Column("near R@5", "near R@5"),
    Column("R@10", "near R@10"),
    Column("R@20", "near R@20"),
    Column("far R@5", "far R@5"),
    Column("R@10", "far R@10"),
    Column("R@20", "far R@20"),
)

_DEVIATIONS = (
    "the paper trains on photos and shows photos of another collection (near) and fruit of a shop"
    " (far); here near are scenes of the same words, far are scenes of words that neither training"
    " nor the encoder of the shipped base has seen",
    "the later images are searched among all that were trained on; the paper does not say",
)

# Section 5 of the paper.
_PUBLISHED = (
    "Published (section 5 of the paper; trained on Flickr30K, 100 unseen images; R@5 / 10 / 20):"
    " MS-COCO",
    "56.4 / 71.2 / 84.0, fruit 22.5 / 29.2 / 32.0.",
)


def coldstart(sizes: PaperSizes, progress: Progress) -> StudyTable:
    """Train once for each seed, then index both domains beside what was trained on."""
    with progress("cold starts", len(sizes.seeds)) as bar:
        rows = rows_of_seeds(sizes.seeds, lambda seed: _one_seed(sizes, seed), bar)
    return StudyTable(
        "coldstart",
        "Images that come without training (section 5)",
        sizes.told,
        sizes.seeds,
        _COLUMNS,
        rows,
        {},
        _DEVIATIONS,
        _PUBLISHED,
    )


def _one_seed(sizes: PaperSizes, seed: int) -> dict[str, Figures]:
    corpus = prepare_corpus(sizes.scenes(seed), SHIPPED)
    trained = corpus.stream.arrivals(0)
    generation = train_fully(SHIPPED, study_profile(), corpus, trained, seed)
    settings = RetrievalSettings(beams=sizes.beams)
    five: Measured = {}
    product: Measured = {}
    dense: Measured = {}
    for name, numbers in _domains(corpus.stream).items():
        asked = Asked(np.concatenate([trained, numbers]), {name: numbers})
        with open_gallery(generation, corpus, asked, settings) as index:
            five |= five_token_figures(index, generation, asked, sizes.beams)
            product |= product_figures(index, asked)
        dense |= dense_figures(corpus, asked)
    return {
        "SIGMA, five tokens (the paper)": five,
        "SIGMA, as the product searches": product,
        "exact dense search": dense,
    }


def _domains(stream: Stream) -> dict[str, IntArray]:
    """Numbers of the near and of the far images: the settling ones, which no index has seen."""
    first = stream.config.images
    count = stream.config.settling
    near = np.arange(first, first + count, dtype=np.int64)
    return {"near": near, "far": near + count}
