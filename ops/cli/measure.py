"""Commands that measure the product itself: `bench` and `study`."""

from argparse import Namespace
from pathlib import Path

from ops.cli.context import AddCommand, emit, limit_threads
from schemas.errors import UsageError
from schemas.settings import Settings

BENCHMARKS = (
    "trie",
    "decode",
    "ingest",
    "query",
    "chaos",
    "steady",
    "drift",
    "recluster",
    "switch",
)


def add_commands(add: AddCommand) -> None:
    """Declare the commands of this group."""
    bench_command = add(
        "bench",
        bench,
        "measure ours beside a peer, or an endurance run, on temporary services of its own",
    )
    bench_command.add_argument("what", choices=BENCHMARKS)
    bench_command.add_argument(
        "--kafka",
        metavar="HOST:PORT",
        help="a broker for tests, whose topics of this project are deleted first",
    )
    bench_command.add_argument("--events", type=int, metavar="N", help="how many images flow")
    bench_command.add_argument(
        "--seconds", type=float, metavar="S", help="steady: how long; switch: how long each phase"
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
    study_command = add(
        "study",
        study,
        "the long-run study: what arrivals, deletions and shifts do to recall under several"
        " policies",
    )
    study_command.add_argument("what", choices=("longrun",))
    study_command.add_argument(
        "--out",
        type=Path,
        default=Path("docs/longrun"),
        metavar="FOLDER",
        help="runs, tables and plots; finished runs stay",
    )
    study_command.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    study_command.add_argument(
        "--reduced",
        action="store_true",
        help="one seed, one stream, a few sessions on the shipped base: minutes",
    )


def bench(options: Namespace, settings: Settings) -> int:
    """`sigma bench`"""
    from ops.bench.benchmarks import run_benchmark

    limit_threads(settings)
    document, text = run_benchmark(options)
    emit(document, options.json, text)
    return 0


def study(options: Namespace, settings: Settings) -> int:
    """`sigma study`"""
    from ops.cli.progress_bar import bar
    from ops.study.longrun import REDUCED, StudyConfig, longrun, publish
    from ops.study.summary import table

    if options.seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {options.seeds}")
    config = REDUCED if options.reduced else StudyConfig(seeds=tuple(range(options.seeds)))
    document = longrun(config, options.out, bar)
    publish(document, options.out)
    text = f"{table(document)}\nplots and tables are in {options.out}"
    emit(document, options.json, text)
    return 0
