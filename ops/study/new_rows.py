"""`python -m ops.study.new_rows [SEED …]`: how the rows of identifier tokens should begin.

A pretrained model knows nothing of these tokens. Rows at the mean of the known ones change its
predictions least (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models");
rows that differ as known ones do can be told apart from the first step on.
"""

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from model.network.base import SHIPPED, Base
from model.network.parts import parts_from_base
from model.network.sigma import SigmaModel
from model.network.vocabulary import NEW_TOKEN_SPREAD
from model.training.trainee import own_rows, word_tables
from ops.markdown_table import table_head, table_row
from ops.study.learning import train_parts
from ops.study.paper_search import Asked, five_token_figures, open_gallery, product_figures
from ops.study.paper_sizes import PaperSizes
from ops.study.shared_models import prepare_corpus
from ops.study.study_config import study_profile
from ops.study.study_table import Figures
from schemas.retrieval_settings import RetrievalSettings

# Share of the known rows' mean, and noise as a share of their standard deviation.
BEGINNINGS = {
    "at the mean, noise of a fiftieth": (1.0, 0.02),
    "around the mean, noise of a half (as it is)": (1.0, NEW_TOKEN_SPREAD),
    "around the mean, noise like theirs": (1.0, 1.0),
    "around zero, noise like theirs": (0.0, 1.0),
}

_SIZES = PaperSizes(trained=960, later=160)

# Recall by the paper's five tokens, and by the product's search.
_FIVE = ("seen R@1", "unseen R@10")
_PRODUCT = ("seen R@1", "seen R@10", "unseen R@1", "unseen R@10")


@torch.no_grad()
def redraw(sigma: SigmaModel, mean: float, spread: float) -> None:
    """Draw the rows of identifier tokens anew, in place and always the same."""
    own = own_rows(sigma)
    known = torch.ones(len(sigma.tokenizer), dtype=torch.bool)
    known[own] = False
    generator = torch.Generator().manual_seed(0)
    for table in word_tables(sigma):
        old = table[: len(known)][known]
        noise = torch.randn(len(own), table.shape[1], generator=generator)
        table[own] = mean * old.mean(0) + noise * old.std(0) * spread


def compare(seed: int, sizes: PaperSizes = _SIZES) -> dict[str, Figures]:
    """Figures of each beginning: recall as shares, and `candidates`. All else is the same."""
    found: dict[str, Figures] = {}
    corpus = prepare_corpus(sizes.scenes(seed), SHIPPED)
    asked = Asked.of(corpus, sizes)
    settings = RetrievalSettings(beams=sizes.beams)
    for name, (mean, spread) in BEGINNINGS.items():
        parts = parts_from_base(Base.load(SHIPPED), study_profile())
        redraw(parts.sigma, mean, spread)
        trained = train_parts(parts, corpus, corpus.stream.arrivals(0), seed)
        with open_gallery(trained, corpus, asked, settings) as index:
            five = five_token_figures(index, trained, asked, sizes.beams)
            product = product_figures(index, asked)
        found[name] = {f"five {figure}": five[figure] for figure in _FIVE} | product
    return found


def table(runs: Sequence[Mapping[str, Figures]]) -> str:
    """Means over the runs of several seeds as Markdown, recall in percent."""
    five = [f"five {figure}" for figure in _FIVE]
    lines = table_head(["rows begin", *five, *_PRODUCT, "images scored"])
    for name in BEGINNINGS:
        cells = [f"{100 * _mean(runs, name, figure):.1f}" for figure in [*five, *_PRODUCT]]
        lines.append(table_row([name, *cells, f"{_mean(runs, name, 'candidates'):.0f}"]))
    return "\n".join(lines)


def _mean(runs: Sequence[Mapping[str, Figures]], name: str, figure: str) -> float:
    values = [run[name][figure] for run in runs]
    return float(np.mean([value for value in values if value is not None]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table([compare(int(seed)) for seed in sys.argv[1:] or ("0", "1")]))
