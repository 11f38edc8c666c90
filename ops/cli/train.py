"""What `sigma train` does: checks what is asked for, and runs the trainer, or one rank of it under `torchrun`."""

import os
import signal
import threading
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ops.cli.context import AddCommand, emit, entries_of, open_database
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.settings import Settings


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add(
        "train", train, "train a generation: on a manifest, on the store, or from the live one"
    )
    command.add_argument(
        "--manifest", type=Path, metavar="F", help="JSON Lines, Karpathy's JSON, or a folder"
    )
    command.add_argument(
        "--from-store", action="store_true", help="anew, on the captioned images that are stored"
    )
    command.add_argument(
        "--refresh",
        action="store_true",
        help="from the live weights, on new images and a replay of old ones",
    )
    command.add_argument(
        "--recluster",
        action="store_true",
        help="a new codebook that moves few identifiers; alone, nothing is trained",
    )
    command.add_argument("--profile", help="tiny (default), qwen-3b or qwen-7b")
    command.add_argument(
        "--stage",
        default="all",
        choices=("codebook", "memorize", "comprehend", "align", "all"),
        help="last stage to run",
    )
    command.add_argument(
        "--resume", action="store_true", help="go on with the unfinished generation"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--stop-with-parent",
        action="store_true",
        help="end when standard input does; for those who start it as a job",
    )
    command.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="start from this base instead of the shipped one (tiny profile)",
    )
    command.add_argument(
        "--adapt",
        default="auto",
        choices=("auto", "always", "never"),
        help="train the base further on these images first",
    )
    command.add_argument(
        "--promote", action="store_true", help="make the new generation live if the gate lets it"
    )


def train(options: Namespace, settings: Settings) -> int:
    """`sigma train`"""
    check(options)
    from model.training.ranks import is_first_rank, join_ranks, leave_ranks
    from workers.runtime.services import Services
    from workers.trainer.stage_runner import assist

    if options.stop_with_parent:
        _stop_with_parent()
    join_ranks()
    try:
        if is_first_rank():
            return _first(options, settings)
        # Only the first rank knows the database; pictures and checkpoints are read from where it reads them.
        assist(Services(settings, settings.database_url or ""))
        return 0
    finally:
        leave_ranks()


def check(options: Namespace) -> None:
    """`UsageError` when the options contradict each other, or name nothing to train on."""
    parental = options.refresh or options.recluster
    given = [
        name
        for name, there in (("--manifest", options.manifest), ("--from-store", options.from_store))
        if there
    ]
    given += ["--refresh/--recluster"] if parental else []
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} exclude each other: they name different things to train on; keep one"
        )
    if not given and not options.resume:
        raise UsageError(
            "name what to train on: --manifest F, --from-store, --refresh or --recluster; or go on with --resume"
        )
    if parental and (options.base or options.adapt != "auto"):
        raise UsageError(
            "--base and --adapt are for a training from base weights, not for one from the live generation; leave them out"
        )
    if options.recluster and not options.refresh and options.stage != "all":
        raise UsageError("--recluster alone runs no stage; leave --stage out, or add --refresh")


def _first(options: Namespace, settings: Settings) -> int:
    from model.network.base import SHIPPED
    from model.network.profiles import profile
    from ops.cli.progress_bar import bar
    from workers.trainer.trainer import TrainRequest
    from workers.trainer.trainer import train as run

    request = TrainRequest(
        profile=profile(options.profile) if options.profile else None,
        until="align" if options.stage == "all" else options.stage,
        resume=options.resume,
        seed=options.seed,
        base=options.base or SHIPPED,
        adapt=options.adapt,
        mode=_mode(options),
        recluster=options.recluster and options.refresh,
    )
    entries = entries_of(options.manifest, None) if options.manifest else None
    with open_services(settings) as found, open_database(found, "train") as conn:
        result = run(found, entries, request, bar)
        if options.promote and result.state == "shadow":
            from ops.jobs.candidate_promotion import CandidatePromoter

            CandidatePromoter.on_services(found, conn).promote(result.generation)
            result = replace(result, state="live")
    emit(asdict(result), options.json, told(result))
    return 0


def _mode(options: Namespace) -> Any:
    if options.refresh:
        return "refresh"
    if options.recluster:
        return "recluster"
    return "full" if options.manifest or options.from_store else None


def told(result: Any) -> str:
    """What a person reads of a `TrainResult`."""
    hint = {
        "building": "go on with --resume",
        "shadow": f"make it live with: sigma generations promote {result.generation}",
    }
    then = hint.get(result.state, "it answers queries")
    if result.figures.get("mode") == "recluster":
        moved = result.figures["recluster"]["moved"]
        text = f"generation {result.generation} is {result.state}, {moved:,} of {result.images:,} images have moved; {then}"
    else:
        text = f"generation {result.generation} is {result.state}, trained on {result.images:,} images; {then}"
    return text + "".join(f"\nleft out {one['path']}: {one['reason']}" for one in result.rejected)


def _stop_with_parent() -> None:
    """End as by SIGTERM when standard input closes: whoever started this process holds the other end."""

    def wait() -> None:
        # Not through `sys.stdin`: its lock, held here for good, would abort the interpreter when it shuts down.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
