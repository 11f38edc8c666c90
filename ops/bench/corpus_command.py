"""How `sigma bench corpus` is asked for: its options, and services of its own."""

import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from model.network.profiles import profile
from model.training.adapt import AdaptConfig
from ops.bench.corpus import DEFAULT_QUERIES, CorpusBenchConfig, bench_corpus
from ops.bench.corpus_manifests import read_corpus
from ops.bench.corpus_page import keep_run
from ops.bench.corpus_result import CorpusBenchResult
from ops.bench.corpus_sheet import DEFAULT_ROWS, SheetConfig
from ops.cli.progress_bar import bar
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.settings import Settings
from workers.repository.connection import migrate
from workers.trainer.request import TrainRequest
from workers.trainer.training_run import DEFAULT_PROFILE


def corpus(options: Namespace, settings: Settings) -> CorpusBenchResult:
    """Run the benchmark and keep the run."""
    if not options.manifests:
        raise UsageError(
            "sigma bench corpus needs a manifest, got none; give up to three: to train on, to "
            "arrive later, a shift"
        )
    config = _config(options, settings)
    images = read_corpus(options.manifests)
    with _home(options.keep) as home:
        # How to train and to search is the user's choice; database, log and store are our own.
        own = replace(
            settings, home=home, database_url=None, kafka=None, s3=None, source_roots=None
        )
        with open_services(own) as services:
            with services.connect("bench corpus") as conn:
                migrate(conn)
            result = bench_corpus(services, images, config, bar)
    keep_run(result, options.out)
    return result


def _config(options: Namespace, settings: Settings) -> CorpusBenchConfig:
    for name, value in (("--queries", options.queries), ("--sheet-rows", options.sheet_rows)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    sheet = None
    if options.sheet is not None:
        queries = tuple(options.ask or ())
        sheet = SheetConfig(options.sheet, options.sheet_rows or DEFAULT_ROWS, queries)
    elif options.ask or options.sheet_rows:
        raise UsageError("--ask and --sheet-rows are for a sheet; add --sheet FILE")
    return CorpusBenchConfig(
        training=TrainRequest(
            profile(options.profile or DEFAULT_PROFILE),
            seed=options.seed,
            encoder=options.encoder or settings.encoder,
        ),
        queries=options.queries or DEFAULT_QUERIES,
        sheet=sheet,
        adapted=AdaptConfig(seed=options.seed) if options.beside_tiny else None,
    )


@contextmanager
def _home(kept: Path | None) -> Iterator[Path]:
    """A home that ends with the block, or the empty folder in which it is to stay."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="sigma-corpus-") as folder:
            yield Path(folder)
        return
    if kept.exists() and any(kept.iterdir()):
        raise UsageError(f"--keep needs a new or empty folder, got {kept}; name another one")
    kept.mkdir(parents=True, exist_ok=True)
    yield kept.absolute()
