"""`sigma bench recluster`: what a re-clustering keeps and gains, beside the naive ways to refit.

A store holds the images of a small world, in which some shapes, colours and grounds never occur,
that an old codebook was fitted to, and as many later ones: of the same world (*stationary*), or
half of them full of what the old codebook has never seen (*shifted*). Embeddings are those of the
shipped base.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

import numpy as np

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.identifiers.quality import quantisation_error
from model.identifiers.recluster import ReclusterConfig, keep_codes, recluster_within_budget
from model.identifiers.recluster_report import ReclusterReport, gain_share, recluster_report
from model.identifiers.sticky_kmeans import matching
from model.network.base import SHIPPED, Base
from model.network.profiles import profile
from ops.bench.comparison import Comparison, document, table
from ops.bench.recluster_stores import CORPORA, embedded_stores
from ops.cli.progress_bar import bar
from schemas.identifiers import LEVELS
from schemas.records import BoolArray, FloatArray, IntArray, JsonObject

# Fresh fits of a run. The error of one depends on its seed by as much as a stationary corpus can
# gain, so their mean is the yardstick.
_FRESH_FITS = 3

# Between the seeds of two fresh fits of a run; runs are one apart.
_SEEDS_APART = 1000


@dataclass(frozen=True, slots=True)
class ReclusterBenchConfig:
    """How many images and runs."""

    images: int = 2000
    """That the old codebook was fitted to; as many come later."""
    runs: int = 3
    """Each has its own seed, and a store of both kinds."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class KeptShares:
    """Shares of images that keep their codes."""

    levels: tuple[float, ...]
    """Each level for itself."""
    whole: float
    """All four codes."""

    @classmethod
    def of(cls, was: IntArray, now: IntArray) -> "KeptShares":
        """Compare (N, 4) codes before and after."""
        same = was == now
        return cls(tuple(same.mean(axis=0).tolist()), float(same.all(axis=1).mean()))

    def to_json(self) -> list[float]:
        """id1 to id4, then all four together."""
        return [*self.levels, self.whole]


@dataclass(frozen=True, slots=True)
class ReclusterRun:
    """One store, re-clustered and refitted."""

    seed: int
    corpus: str
    report: ReclusterReport
    """Of the re-clustering, beside the first fresh fit."""
    kept_early: float
    """Share of whole identifiers kept among the images that the old codebook was fitted to."""
    kept_late: float
    """The same among the later ones."""
    errors_fresh: list[float]
    """Of each fresh fit."""
    distance: float
    """The tolerance that the re-clustering ended up with."""
    cpu_s: float
    kept_naive: KeptShares
    """By the first fresh fit."""
    kept_matched: KeptShares
    """By the first fresh fit, renumbered like the old codebook."""

    @property
    def error_fresh(self) -> float:
        """Mean of the fresh fits."""
        return fmean(self.errors_fresh)

    def to_json(self) -> JsonObject:
        """One of the `runs` of the JSON document."""
        before = self.report.error_old
        after = self.report.error_new
        return {
            "seed": self.seed,
            "corpus": self.corpus,
            **self.report.to_dict(),
            "kept_early": self.kept_early,
            "kept_late": self.kept_late,
            "errors_fresh": self.errors_fresh,
            "error_fresh": self.error_fresh,
            "gain_share": gain_share(before, after, self.error_fresh),
            "gain_share_of_best": gain_share(before, after, min(self.errors_fresh)),
            "to_fresh": after / self.error_fresh,
            "distance": self.distance,
            "cpu_s": self.cpu_s,
            "kept_naive": self.kept_naive.to_json(),
            "kept_matched": self.kept_matched.to_json(),
        }


def recluster(config: ReclusterBenchConfig) -> tuple[JsonObject, str]:
    """Run all; return the JSON document with every run, and the table of their means."""
    runs = _run_all(config)
    comparisons = []
    for corpus in CORPORA:
        same_corpus = [run for run in runs if run.corpus == corpus]
        comparisons += _compare(corpus, same_corpus)
    report = document(
        comparisons,
        config=asdict(ReclusterConfig()),
        images=config.images,
        runs=[run.to_json() for run in runs],
    )
    return report, table(comparisons)


def _run_all(config: ReclusterBenchConfig) -> list[ReclusterRun]:
    base = Base.load(SHIPPED)
    runs = []
    with bar("re-cluster", len(CORPORA) * config.runs) as progress:
        for seed in range(config.seed, config.seed + config.runs):
            stores = embedded_stores(base, config.images, seed)
            early = stores["stationary"][: config.images]
            old = fit_codebook(early, CodebookConfig(profile("tiny").shape, seed=seed))
            for corpus, embeddings in stores.items():
                runs.append(_run(corpus, old, embeddings, config.images, seed))
                progress.update(1)
    return runs


def _run(corpus: str, old: Codebook, embeddings: FloatArray, early: int, seed: int) -> ReclusterRun:
    """Re-cluster and refit the (N, D) embeddings of a store.

    The old codebook was fitted to the first `early` rows.
    """
    was = old.encode(embeddings)
    # CPU seconds: other processes of the machine do not count.
    began = time.process_time()
    new, config = recluster_within_budget(old, embeddings, ReclusterConfig(seed=seed))
    now = keep_codes(was, embeddings, new, config)
    cpu_s = time.process_time() - began
    fresh_fits = _fresh_fits(old, embeddings, seed)
    fresh_codes = fresh_fits[0].encode(embeddings)
    whole = (now == was).all(axis=1)
    return ReclusterRun(
        seed=seed,
        corpus=corpus,
        report=recluster_report(was, now, embeddings, old, new, fresh_fits[0]),
        kept_early=float(whole[:early].mean()),
        kept_late=float(whole[early:].mean()),
        errors_fresh=[_error(fit, embeddings) for fit in fresh_fits],
        distance=config.distance,
        cpu_s=cpu_s,
        kept_naive=KeptShares.of(was, fresh_codes),
        kept_matched=KeptShares.of(was, matched(was, fresh_codes, old)),
    )


def _fresh_fits(old: Codebook, embeddings: FloatArray, seed: int) -> list[Codebook]:
    fits = []
    for number in range(_FRESH_FITS):
        config = replace(old.config, seed=seed + _SEEDS_APART * number)
        fits.append(fit_codebook(embeddings, config))
    return fits


def _error(codebook: Codebook, embeddings: FloatArray) -> float:
    return quantisation_error(codebook, codebook.encode(embeddings), embeddings)


def matched(was: IntArray, now: IntArray, old: Codebook) -> IntArray:
    """Renumber the (N, 4) codes of a fresh fit by a Hungarian matching at each level.

    id2 and id3 are matched inside each id1, as they mean something only there. This is the peer.
    """
    # A fresh fit knows nothing of the old numbers: without this, equal clusters look moved.
    renumbered = now.copy()
    counts = old.config.shape.codes
    every_row = np.ones(len(was), dtype=np.bool_)
    renumbered[:, 0] = _renumber(was[:, 0], now[:, 0], counts[0], every_row)
    for cluster in np.unique(renumbered[:, 0]):
        members = np.flatnonzero(renumbered[:, 0] == cluster)
        stayed = was[members, 0] == cluster
        for level in (1, 2):
            renumbered[members, level] = _renumber(
                was[members, level], now[members, level], counts[level], stayed
            )
    renumbered[:, 3] = _renumber(was[:, 3], now[:, 3], counts[3], every_row)
    return renumbered


def _renumber(was: IntArray, now: IntArray, count: int, voters: BoolArray) -> IntArray:
    """(n,) codes `now` under the numbers of the old ones with which they share most `voters`."""
    order = matching(was[voters], now[voters], count)
    return np.argsort(order)[now]


def _compare(corpus: str, runs: Sequence[ReclusterRun]) -> list[Comparison]:
    """The means of the runs on one kind of store."""
    images = sum(run.report.images for run in runs)
    comparisons = []

    def add(figure: str, ours: float, peer: float, peer_name: str, unit: str) -> None:
        name = f"{corpus}: {figure}"
        comparisons.append(Comparison(name, ours, peer, peer_name, unit, images))

    for level in range(LEVELS):
        kept, kept_matched = _mean_kept(runs, level)
        add(f"id{level + 1} kept", kept, kept_matched, "fresh fit, matched", "share")
    whole = _mean(runs, lambda run: run.report.kept_whole)
    matched_whole = _mean(runs, lambda run: run.kept_matched.whole)
    naive_whole = _mean(runs, lambda run: run.kept_naive.whole)
    worst_whole = min(run.report.kept_whole for run in runs)
    add("id1..id4 kept", whole, matched_whole, "fresh fit, matched", "share")
    add("id1..id4 kept", whole, naive_whole, "fresh fit", "share")
    add("id1..id4 kept, worst run", worst_whole, whole, "mean of the runs", "share")
    old = _mean(runs, lambda run: run.report.error_old)
    new = _mean(runs, lambda run: run.report.error_new)
    fresh = _mean(runs, lambda run: run.error_fresh)
    add("reconstruction error", new, fresh, "fresh fit", "of variance")
    add("reconstruction error", new, old, "old codebook", "of variance")
    add("error gained", old - new, old - fresh, "fresh fit", "of variance")
    gini_old = _mean(runs, lambda run: run.report.leaf_gini_old)
    gini_new = _mean(runs, lambda run: run.report.leaf_gini_new)
    add("leaf Gini", gini_new, gini_old, "before", "")
    p99_old = _mean(runs, lambda run: run.report.leaf_p99_old)
    p99_new = _mean(runs, lambda run: run.report.leaf_p99_new)
    add("leaf p99", p99_new, p99_old, "before", "images")
    return comparisons


def _mean_kept(runs: Sequence[ReclusterRun], level: int) -> tuple[float, float]:
    """Shares of codes of a level that the re-clustering and the matched fresh fit keep."""
    ours = _mean(runs, lambda run: run.report.kept[level])
    peer = _mean(runs, lambda run: run.kept_matched.levels[level])
    return ours, peer


def _mean(runs: Sequence[ReclusterRun], figure: Callable[[ReclusterRun], float]) -> float:
    return fmean(figure(run) for run in runs)
