"""Commands that measure the product itself: `bench` and `study`."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

from ops.cli.context import AddCommand, emit, limit_threads
from schemas.errors import UsageError
from schemas.settings import Settings

BENCHMARKS = (
    "trie",
    "decode",
    "ingest",
    "query",
    "load",
    "chaos",
    "fuzz",
    "steady",
    "drift",
    "recluster",
    "switch",
    "corpus",
    "stream",
    "gpu",
    "residents",
    "filter",
    "scale",
    "growth",
    "turnover",
)

# Where the page of all corpora is, in a checkout of this repository.
CORPORA_OUT = Path("docs/experiments")

# Experiments of the paper.
PAPER_STUDIES = (
    "main",
    "ablation",
    "rivals",
    "coldstart",
    "latency",
    "throughput",
    "explain",
    "cases",
)

# Their pages, in a checkout of this repository.
PAPER_OUT = Path("docs/experiments/paper")

# Tables and plots of the whole study, in a checkout of this repository.
STUDY_OUT = Path("docs/longrun")

# Its run files, in the same checkout.
STUDY_RESULTS = Path("ops/study/results/longrun")


@dataclass(frozen=True, slots=True)
class StudyFolders:
    """Where a study reads and writes."""

    out: Path
    results: Path


def add_commands(add: AddCommand) -> None:
    """Declare the commands of this group."""
    _add_bench(add)
    _add_study(add)


def _add_bench(add: AddCommand) -> None:
    bench_command = add(
        "bench",
        bench,
        "measure ours beside a peer, or an endurance run, on temporary services of its own",
    )
    bench_command.add_argument("what", choices=BENCHMARKS)
    _add_corpus(bench_command)
    _add_stream(bench_command)
    bench_command.add_argument(
        "--kafka",
        metavar="HOST:PORT",
        help="a broker for tests, whose topics of this project are deleted first",
    )
    bench_command.add_argument("--events", type=int, metavar="N", help="how many images flow")
    bench_command.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="fuzz: how many mutated images (default 2000); stream: of the runbook; trie and scale:"
        " their size; turnover: how many come and go; query: one query at a time over so many,"
        " beside 50,000, while images come and go",
    )
    bench_command.add_argument(
        "--width", type=int, metavar="D", help="query --images: numbers of a vector (default 128)"
    )
    bench_command.add_argument(
        "--files", type=Path, metavar="FOLDER", help="fuzz: further image files to mutate"
    )
    bench_command.add_argument(
        "--seconds",
        type=float,
        metavar="S",
        help="steady: how long; load and switch: how long each phase",
    )
    bench_command.add_argument(
        "--stub", action="store_true", help="switch: with the stub model instead of the tiny one"
    )
    bench_command.add_argument(
        "--strikes", type=int, metavar="N", help="chaos: how often a worker is hit (default 100)"
    )
    bench_command.add_argument(
        "--churn", action="store_true", help="chaos: workers join and leave instead of being killed"
    )
    bench_command.add_argument("--seed", type=int, default=0)
    bench_command.add_argument(
        "--peer",
        type=Path,
        default=Path(".venv-peers/bin/python"),
        metavar="PYTHON",
        help="drift: one with Evidently",
    )


def _add_corpus(command: ArgumentParser) -> None:
    """Declare what only the corpus benchmark takes."""
    command.add_argument(
        "manifests",
        type=Path,
        nargs="*",
        metavar="MANIFEST|RUNBOOK",
        help="corpus: up to three, in this order: images to train on; images that arrive later; a "
        "shift, whose captioned half a refresh learns from. One alone is divided by its splits "
        "(train, shift, any other), or a fifth of it arrives later. stream: a runbook, which is "
        "delete, final, churn or a file",
    )
    command.add_argument("--profile", metavar="NAME", help="corpus: what to train (default tiny)")
    command.add_argument(
        "--encoder",
        metavar="NAME|FOLDER",
        help="corpus and residents: pretrained encoder, as in sigma train",
    )
    command.add_argument(
        "--queries",
        type=int,
        metavar="N",
        help="corpus: most queries of a group (default 1000); stream: of each search (default 100)",
    )
    command.add_argument(
        "--beside-tiny",
        action="store_true",
        help="corpus: adapt the encoder of tiny to the captions too, and ask it by exact search",
    )
    command.add_argument(
        "--sheet", type=Path, metavar="FILE", help="corpus: draw queries and answers as a PNG"
    )
    command.add_argument(
        "--sheet-rows", type=int, metavar="N", help="corpus: queries on the sheet (default 10)"
    )
    command.add_argument(
        "--ask",
        action="append",
        metavar="TEXT",
        help="corpus: a query for the sheet, instead of those of the manifest; may be repeated",
    )
    command.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="corpus: leave the trained home there"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        default=CORPORA_OUT,
        help=f"corpus: where the page of all runs is kept (default {CORPORA_OUT})",
    )


def _add_stream(command: ArgumentParser) -> None:
    """Declare what only the stream benchmark takes."""
    command.add_argument(
        "--dataset", metavar="NAME", help="stream: of the runbook's file, where it has several"
    )
    command.add_argument(
        "--trained",
        type=int,
        metavar="N",
        help="stream: scenes that the generation is trained on (default 1000); it is kept",
    )
    command.add_argument(
        "--alone", action="store_true", help="stream: without hnswlib, FAISS and usearch"
    )


def _add_study(add: AddCommand) -> None:
    study_command = add(
        "study",
        study,
        "experiments: the long run of arrivals, deletions and shifts, and those of the paper in"
        " miniature",
    )
    study_command.add_argument("what", choices=("longrun", *PAPER_STUDIES))
    study_command.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"tables and plots (default {STUDY_OUT}, of the paper's {PAPER_OUT}; reduced: study in"
        " the home folder)",
    )
    study_command.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="longrun: run files, their summary and the models that runs share; finished runs are"
        f" not repeated (default {STUDY_RESULTS}; reduced: the folder of --out)",
    )
    study_command.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    study_command.add_argument(
        "--reduced",
        action="store_true",
        help="one seed and few images on the shipped base: a minute or two",
    )


def bench(options: Namespace, settings: Settings) -> int:
    """`sigma bench`"""
    from ops.bench.benchmarks import run_benchmark

    limit_threads(settings)
    if options.manifests and options.what not in ("corpus", "stream"):
        raise UsageError(
            f"sigma bench {options.what} takes no manifest or runbook; corpus and stream do"
        )
    document, text = run_benchmark(options, settings)
    emit(document, options.json, text)
    return 0


def study(options: Namespace, settings: Settings) -> int:
    """`sigma study`"""
    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    if options.what != "longrun":
        return _paper_study(options, settings)
    from ops.cli.progress_bar import bar
    from ops.study.longrun import longrun, publish
    from ops.study.study_config import REDUCED, StudyConfig
    from ops.study.tables import summary_page

    config = REDUCED if options.reduced else StudyConfig(seeds=tuple(range(options.seeds)))
    folders = study_folders(options, settings)
    summary = longrun(config, folders.results, bar)
    publish(summary, folders.results, folders.out)
    text = f"{summary_page(summary)}\nplots and tables are in {folders.out}"
    emit(summary.to_json(), options.json, text)
    return 0


def _paper_study(options: Namespace, settings: Settings) -> int:
    """An experiment of the paper, with rivals and ablations of ours beside."""
    from ops.cli.progress_bar import bar
    from ops.study.paper_studies import paper_study

    limit_threads(settings)
    if options.results is not None:
        raise UsageError("--results is for longrun, whose runs are kept; give --out")
    models = settings.home / "study-models"
    table = paper_study(options.what, options.seeds, options.reduced, models, bar)
    table.write(options.out or (settings.home / "study" if options.reduced else PAPER_OUT))
    emit(table.to_json(), options.json, table.to_markdown())
    return 0


def study_folders(options: Namespace, settings: Settings) -> StudyFolders:
    """Choose the folders of a study.

    A reduced study has folders of its own: beside the runs of the whole study, which have the same
    names, it would find nothing to do.
    """
    if options.reduced:
        out = options.out or settings.home / "study"
        return StudyFolders(out, options.results or out)
    return StudyFolders(options.out or STUDY_OUT, options.results or STUDY_RESULTS)
