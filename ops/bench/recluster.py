"""`sigma bench recluster`: how many identifiers a re-clustering keeps and what it gains, beside the naive ways to refit.

The store holds images of a small world (some shapes, colours and grounds never occur) that an old codebook was fitted on,
and as many later ones: of the same world (*stationary*), or half of them full of what the old codebook has never seen
(*shifted*). Embeddings are the shipped base's.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np

from model.identifiers.codebook import Codebook, CodebookConfig, fit_codebook
from model.identifiers.quality import quantisation_error
from model.identifiers.recluster import ReclusterConfig, keep_codes, recluster_within_budget
from model.identifiers.recluster_report import gain_share, recluster_report
from model.identifiers.sticky_kmeans import matching
from model.network.base import SHIPPED, Base
from model.network.profiles import profile
from ops.bench.rows import Row, document
from ops.cli.progress_bar import bar
from ops.scenes.corpus import CorpusConfig, Sample, samples
from ops.scenes.scene import Scene
from schemas.records import FloatArray, IntArray

LATER = frozenset({"star", "ring", "pink", "brown", "lavender"})
"""Words of scenes that only later images show, in the shifted corpus."""
_SIDE_PX, _FRESH, _MANY = 56, 3, 1 << 40


@dataclass(frozen=True, slots=True)
class ReclusterBench:
    """`images` the old codebook was fitted on, and as many again; each of `runs` corpora has its own seed."""

    images: int = 2000
    runs: int = 3
    seed: int = 0


def bench_recluster(options: ReclusterBench) -> tuple[dict[str, Any], list[Row]]:
    """Every run in detail, and the rows of their means."""
    base = Base.load(SHIPPED)
    runs = []
    with bar("re-cluster", 2 * options.runs) as progress:
        for seed in range(options.seed, options.seed + options.runs):
            stores = _stores(base, options.images, seed)
            old = fit_codebook(
                stores["stationary"][: options.images],
                CodebookConfig(profile("tiny").shape, seed=seed),
            )
            for name, rows in stores.items():
                runs.append(
                    {"seed": seed, "corpus": name, **compare(old, rows, options.images, seed)}
                )
                progress.update(1)
    found = [
        row
        for name in ("stationary", "shifted")
        for row in _rows(name, [run for run in runs if run["corpus"] == name])
    ]
    return document(
        found, config=asdict(ReclusterConfig()), images=options.images, runs=runs
    ), found


def compare(old: Codebook, rows: FloatArray, early: int, seed: int) -> dict[str, Any]:
    """Ours and the naive ways on the (N, D) embeddings of a store whose first `early` rows the old codebook was fitted on.

    A fresh fit depends on its seed by as much as a stationary corpus can gain, so the yardstick is the mean of several.
    """
    codes = old.encode(rows)
    began = time.process_time()
    new, config = recluster_within_budget(old, rows, ReclusterConfig(seed=seed))
    now = keep_codes(codes, rows, new, config)
    took = time.process_time() - began
    fits = [
        fit_codebook(rows, replace(old.config, seed=seed + 1000 * turn)) for turn in range(_FRESH)
    ]
    fresh = [quantisation_error(fit, fit.encode(rows), rows) for fit in fits]
    report = recluster_report(codes, now, rows, old, new, fits[0])
    same = (now == codes).all(axis=1)
    return {
        **report.to_dict(),
        "kept_early": float(same[:early].mean()),
        "kept_late": float(same[early:].mean()),
        "errors_fresh": fresh,
        "error_fresh": fmean(fresh),
        "gain_share": gain_share(report.error_old, report.error_new, fmean(fresh)),
        "gain_share_of_best": gain_share(report.error_old, report.error_new, min(fresh)),
        "to_fresh": report.error_new / fmean(fresh),
        "distance": config.distance,
        "cpu_s": took,
        "kept_naive": _kept(codes, fits[0].encode(rows)),
        "kept_matched": _kept(codes, matched(codes, fits[0].encode(rows), old)),
    }


def matched(was: IntArray, now: IntArray, old: Codebook) -> IntArray:
    """The peer: (N, 4) codes of a fresh fit renumbered by a Hungarian matching at each level, id2 and id3 inside id1."""
    found, shape = now.copy(), old.config.shape.codes
    found[:, 0] = _renumbered(was[:, 0], now[:, 0], shape[0])
    for cluster in np.unique(found[:, 0]):
        at = np.flatnonzero(found[:, 0] == cluster)
        same = was[at, 0] == cluster
        for level in (1, 2):
            found[at, level] = _renumbered(was[at, level], now[at, level], shape[level], same)
    found[:, 3] = _renumbered(was[:, 3], now[:, 3], shape[3])
    return found


def _renumbered(was: IntArray, now: IntArray, count: int, counted: Any = slice(None)) -> IntArray:
    """Codes `now` under the numbers of the old ones they share most rows with; only `counted` rows vote."""
    return np.argsort(matching(was[counted], now[counted], count))[now]


def _kept(was: IntArray, now: IntArray) -> list[float]:
    """Share of equal codes at each level, then of all four together."""
    return [
        *(float(share) for share in (was == now).mean(axis=0)),
        float((was == now).all(axis=1).mean()),
    ]


def _rows(name: str, runs: list[dict[str, Any]]) -> list[Row]:
    def mean(key: str) -> float:
        return fmean(run[key] for run in runs)

    count = sum(run["images"] for run in runs)
    rows = [
        Row(
            f"{name}: id{level + 1} kept",
            fmean(r["kept"][level] for r in runs),
            fmean(r["kept_matched"][level] for r in runs),
            "fresh fit, matched",
            "share",
            count,
        )
        for level in range(4)
    ]
    whole, least = mean("kept_whole"), min(run["kept_whole"] for run in runs)
    rows += [
        Row(
            f"{name}: id1..id4 kept",
            whole,
            fmean(r["kept_matched"][4] for r in runs),
            "fresh fit, matched",
            "share",
            count,
        ),
        Row(
            f"{name}: id1..id4 kept",
            whole,
            fmean(r["kept_naive"][4] for r in runs),
            "fresh fit",
            "share",
            count,
        ),
        Row(f"{name}: id1..id4 kept, worst run", least, whole, "mean of the runs", "share", count),
        Row(
            f"{name}: reconstruction error",
            mean("error_new"),
            mean("error_fresh"),
            "fresh fit",
            "of variance",
            count,
        ),
        Row(
            f"{name}: reconstruction error",
            mean("error_new"),
            mean("error_old"),
            "old codebook",
            "of variance",
            count,
        ),
        Row(
            f"{name}: error gained",
            mean("error_old") - mean("error_new"),
            mean("error_old") - mean("error_fresh"),
            "fresh fit",
            "of variance",
            count,
        ),
        Row(
            f"{name}: leaf Gini", mean("leaf_gini_new"), mean("leaf_gini_old"), "before", "", count
        ),
        Row(
            f"{name}: leaf p99",
            mean("leaf_p99_new"),
            mean("leaf_p99_old"),
            "before",
            "images",
            count,
        ),
    ]
    return rows


def _stores(base: Base, images: int, seed: int) -> dict[str, FloatArray]:
    """Embeddings of both stores: the first `images` and the first half of the later ones are the same images in both."""
    encoder, stream = (
        base.encoder,
        CorpusConfig(images=_MANY, seed=seed, captions=0, test_captions=0),
    )
    half = images // 2

    def embedded(scenes: Iterator[Sample], count: int) -> FloatArray:
        return encoder.embed_images([sample.pixels(_SIDE_PX) for sample in islice(scenes, count)])

    usual = embedded((s for s in samples(stream) if not _words(s.scene) & LATER), 2 * images)
    strange = embedded((s for s in samples(stream) if _strange(s.scene)), images - half)
    return {"stationary": usual, "shifted": np.concatenate([usual[: images + half], strange])}


def _words(scene: Scene) -> set[str]:
    return {scene.ground}.union(*({thing.shape, thing.colour} for thing in scene.objects))


def _strange(scene: Scene) -> bool:
    """On a ground that only later scenes have, or showing nothing but things of a later shape or colour."""
    return scene.ground in LATER or all(
        {thing.shape, thing.colour} & LATER for thing in scene.objects
    )
