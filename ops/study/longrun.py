"""`sigma study longrun`: every policy on every stream and seed.

Each run has a file of its own, so that a stopped study continues where it stopped.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from model.progress import Progress
from ops.study.plots import draw_plots
from ops.study.shared_models import (
    first_model_folder,
    prepare_corpus,
    study_base,
    train_first_model,
)
from ops.study.simulation import simulate
from ops.study.streams import StreamConfig
from ops.study.study_config import StudyConfig
from ops.study.study_runs import read_runs, run_file, write_run
from ops.study.summary import StudySummary, summarise
from ops.study.tables import summary_page

# Folder of the models that runs share, in the folder of the results. Can be made again.
MODELS_FOLDER = "models"

# File of all figures, in the folder of the results.
SUMMARY = "summary.json"


def longrun(config: StudyConfig, results: Path, progress: Progress) -> StudySummary:
    """Run what is missing below `results`, and summarise all runs there."""
    missing = [stream for stream in config.streams if _missing_policies(config, stream, results)]
    if missing:
        _run_streams(config, missing, results, progress)
    return summarise(read_runs(results))


def publish(summary: StudySummary, results: Path, out: Path) -> None:
    """Write `summary.json` to `results`; `summary.md` and the plots of all runs to `out`."""
    results.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    document = json.dumps(summary.to_json(), indent=1)
    (results / SUMMARY).write_text(document + "\n", encoding="utf-8")
    (out / "summary.md").write_text(summary_page(summary), encoding="utf-8")
    draw_plots(read_runs(results), out)


def _missing_policies(config: StudyConfig, stream: StreamConfig, results: Path) -> list[str]:
    missing = []
    for policy in config.policies:
        if not run_file(results, stream.kind, stream.seed, policy).is_file():
            missing.append(policy)
    return missing


def _run_streams(
    config: StudyConfig, streams: Sequence[StreamConfig], results: Path, progress: Progress
) -> None:
    """Run these streams, one on each core."""
    models = results / MODELS_FOLDER
    base = study_base(config, models, progress)
    seeds = sorted({stream.seed for stream in streams})
    total = len(streams) * len(config.policies) * config.stream.sessions
    with (
        progress("sessions", total) as bar,
        ProcessPoolExecutor(
            os.cpu_count() or 1, mp_context=get_context("spawn"), initializer=_use_one_thread
        ) as pool,
    ):
        # Reading the results raises what a process raised.
        list(pool.map(train_first_model, repeat(config), seeds, repeat(base), repeat(models)))
        finished = pool.map(_run_stream, repeat(config), streams, repeat(base), repeat(results))
        for sessions in finished:
            bar.update(sessions)


def _use_one_thread() -> None:
    # The processes fill the cores; and sums in one thread are the same on every machine size.
    torch.set_num_threads(1)


def _run_stream(config: StudyConfig, stream: StreamConfig, base: Path, results: Path) -> int:
    """Run the missing policies on one stream; returns the sessions of all policies."""
    corpus = prepare_corpus(stream, base)
    first = first_model_folder(results / MODELS_FOLDER, stream)
    # One policy after the other, so that the corpus is prepared once.
    for policy in _missing_policies(config, stream, results):
        write_run(results, simulate(config, corpus, policy, base, first))
    return len(config.policies) * stream.sessions
