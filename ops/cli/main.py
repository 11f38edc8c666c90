"""The command line. Parsing here, work elsewhere; modules are imported when a command needs them, so that help is quick."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ops.cli import commands as work
from ops.cli import operations as operate
from ops.cli import report as reporting
from ops.cli import train as training
from schemas.errors import SigmaError
from schemas.settings import Settings
from workers.runtime.logs import configure

Add = Callable[..., argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `sigma`. Exit codes: 0 done, 1 the work failed, 2 bad usage or bad input."""
    parsed = parser().parse_args(arguments)
    # Standard output is for the answer. Workers set their own level.
    configure("warning")
    try:
        return int(parsed.run(parsed, Settings.from_environment(os.environ)) or 0)
    except SigmaError as error:
        print(f"sigma: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("sigma: interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output went away, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    root = argparse.ArgumentParser(
        prog="sigma",
        description="A streaming incremental index for generative text-to-image retrieval.",
    )
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Any, help: str, *, reads: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        if reads:
            command.add_argument(
                "--json", action="store_true", help="print one JSON document on standard output"
            )
        return command

    _filling(add)
    _looking(add)
    _making(add)
    return root


def _filling(add: Add) -> None:
    """Commands that start things and put images in."""
    demo = add("demo", work.demo, "the main job end to end on embedded defaults")
    demo.add_argument(
        "--images",
        type=int,
        default=3500,
        help="images in all; a seventh is streamed unseen (default 3500)",
    )
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--ablate",
        action="store_true",
        help="also measure one posting an image, and analytic assignment",
    )
    up = add("up", work.up, "start all processes in the background and return when ready")
    up.add_argument(
        "--foreground", action="store_true", help="stay, and stop the processes on Ctrl-C"
    )
    add("down", work.down, "stop all processes of this home")
    add("init", work.init, "create or upgrade the database and the topics")
    train = add(
        "train",
        training.train,
        "train a generation: on a manifest, on the store, or from the live one",
    )
    train.add_argument(
        "--manifest", type=Path, metavar="F", help="JSON Lines, Karpathy's JSON, or a folder"
    )
    train.add_argument(
        "--from-store", action="store_true", help="anew, on the captioned images that are stored"
    )
    train.add_argument(
        "--refresh",
        action="store_true",
        help="from the live weights, on new images and a replay of old ones",
    )
    train.add_argument(
        "--recluster",
        action="store_true",
        help="a new codebook that moves few identifiers; alone, nothing is trained",
    )
    train.add_argument("--profile", help="tiny (default), qwen-3b or qwen-7b")
    train.add_argument(
        "--stage",
        default="all",
        choices=("codebook", "memorize", "comprehend", "align", "all"),
        help="last stage to run",
    )
    train.add_argument("--resume", action="store_true", help="go on with the unfinished generation")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--stop-with-parent",
        action="store_true",
        help="end when standard input does; for those who start it as a job",
    )
    train.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="start from this base instead of the shipped one (tiny profile)",
    )
    train.add_argument(
        "--adapt",
        default="auto",
        choices=("auto", "always", "never"),
        help="train the base further on these images first",
    )
    train.add_argument(
        "--promote", action="store_true", help="make the new generation live if the gate lets it"
    )
    ingest = add("ingest", work.ingest, "publish images to the stream")
    ingest.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH", help="image files or folders"
    )
    ingest.add_argument(
        "--manifest", type=Path, metavar="F", help="JSON Lines, Karpathy's JSON, or a folder"
    )
    ingest.add_argument("--split", help="only entries of this split")
    ingest.add_argument(
        "--version", type=int, help="version of these images; a higher one replaces what is stored"
    )
    ingest.add_argument(
        "--wait", action="store_true", help="return when all are searchable or rejected"
    )
    ingest.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="give up after so many seconds without progress",
    )


def _looking(add: Add) -> None:
    """Commands that ask, measure and mend."""
    query = add("query", work.query, "find images by text")
    query.add_argument("text", metavar="TEXT")
    query.add_argument("-k", type=int, default=10, help="how many images (default 10)")
    query.add_argument(
        "--generation",
        type=int,
        metavar="G",
        help="answer from this generation instead of the live one",
    )
    query.add_argument(
        "--mode",
        default="fused",
        choices=("fused", "paper"),
        help="paper: five tokens over primary identifiers",
    )
    evaluate = add(
        "evaluate", work.evaluate, "recall per image beside exact dense and two-tower search"
    )
    evaluate.add_argument("--manifest", type=Path, required=True, metavar="F")
    evaluate.add_argument("--split", help="only entries of this split")
    evaluate.add_argument("--generation", type=int, metavar="G")
    evaluate.add_argument(
        "--queries",
        type=int,
        metavar="N",
        help="sample at most N queries of seen and of unseen images",
    )
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument(
        "--ablate",
        action="store_true",
        help="also measure one posting an image, and analytic assignment",
    )
    explain = add("explain", work.explain, "the caption that an identifier stands for")
    explain.add_argument(
        "what",
        nargs="+",
        metavar="IMAGE_ID|IDENTIFIER",
        help="an image id, or one to five codes such as 3,1,4,2",
    )
    explain.add_argument("--generation", type=int, metavar="G")
    add("status", work.status, "lag, freshness, generation, sizes, alarms")
    switch = add(
        "generations", operate.generations, "list generations, promote or drop one, or roll back"
    )
    switch.add_argument(
        "action", choices=("list", "promote", "rollback", "drop"), nargs="?", default="list"
    )
    switch.add_argument("generation", type=int, nargs="?", metavar="G")
    switch.add_argument(
        "--force",
        action="store_true",
        help="promote without asking the gate; drop even the fallback generation",
    )
    jobs = add("jobs", operate.jobs, "scheduled jobs and their runs, or run one now")
    jobs.add_argument("action", choices=("list", "run"), nargs="?", default="list")
    jobs.add_argument("name", nargs="?", metavar="NAME")
    reporting.add_options(
        add(
            "report",
            reporting.report,
            "recall or drift over time, as a page with plots, JSON or a few lines",
        )
    )
    delete = add("delete", operate.delete, "remove images from all answers at once")
    delete.add_argument("image_ids", nargs="+", metavar="IMAGE_ID")
    letters = add("dead-letters", operate.dead_letters, "events that could not be used, and why")
    letters.add_argument("action", choices=("list", "show", "replay"), nargs="?", default="list")
    letters.add_argument(
        "place", nargs="?", metavar="PARTITION:OFFSET", help="the dead letter to show"
    )
    letters.add_argument("--limit", type=int, default=100)


def _making(add: Add) -> None:
    """Commands that make material, and single processes."""
    corpus = add("corpus", work.corpus, "render a corpus of scenes with captions")
    corpus.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    corpus.add_argument("--images", type=int, default=1000)
    corpus.add_argument("--seed", type=int, default=0)
    corpus.add_argument(
        "--start", type=int, default=0, help="number of the first image; ranges continue one stream"
    )
    corpus.add_argument("--split", help="split written into the manifest")
    base = add(
        "base",
        work.base,
        "stage 0: make the tiny profile's base (minutes on a GPU, about an hour on two cores)",
    )
    base.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    for name in (
        "images",
        "captions",
        "seed",
        "contrastive-epochs",
        "teacher-epochs",
        "pretrain-epochs",
        "probe",
    ):
        base.add_argument(f"--{name}", type=int)
    bench = add(
        "bench",
        operate.bench,
        "measure ours beside a peer, or an endurance run, on temporary services of its own",
    )
    bench.add_argument(
        "what",
        choices=(
            "trie",
            "decode",
            "ingest",
            "query",
            "chaos",
            "steady",
            "drift",
            "recluster",
            "switch",
        ),
    )
    bench.add_argument(
        "--kafka",
        metavar="HOST:PORT",
        help="a broker for tests, whose topics of this project are deleted first",
    )
    bench.add_argument("--events", type=int, metavar="N", help="how many images flow")
    bench.add_argument(
        "--seconds", type=float, metavar="S", help="steady: how long; switch: how long each phase"
    )
    bench.add_argument(
        "--stub", action="store_true", help="switch: with the stub model instead of the tiny one"
    )
    bench.add_argument(
        "--strikes", type=int, metavar="N", help="chaos: how often a worker is hit (default 100)"
    )
    bench.add_argument(
        "--churn", action="store_true", help="chaos: workers join and leave instead of being killed"
    )
    bench.add_argument("--seed", type=int, default=0)
    bench.add_argument(
        "--peer",
        type=Path,
        default=Path(".venv-peers/bin/python"),
        metavar="PYTHON",
        help="drift: one with Evidently",
    )
    study = add(
        "study",
        operate.study,
        "the long-run study: what arrivals, deletions and shifts do to recall under several policies",
    )
    study.add_argument("what", choices=("longrun",))
    study.add_argument(
        "--out",
        type=Path,
        default=Path("docs/longrun"),
        metavar="FOLDER",
        help="runs, tables and plots; finished runs stay",
    )
    study.add_argument("--seeds", type=int, default=3, help="how many seeds (default 3)")
    study.add_argument(
        "--reduced",
        action="store_true",
        help="one seed, one stream, a few sessions on the shipped base: minutes",
    )
    worker = add("worker", work.worker, "run one worker process in the foreground", reads=False)
    worker.add_argument("role", choices=("intake", "index", "query", "scheduler"))
    worker.add_argument(
        "--listener",
        type=int,
        metavar="FD",
        help="query: serve on this inherited socket, which listens already",
    )


if __name__ == "__main__":
    sys.exit(main())
