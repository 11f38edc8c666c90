"""`sigma train`: check the options, and run the trainer, or one rank of it under `torchrun`."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.network.profile_document import read_profile, with_sources
from model.network.profiles import Profile
from ops.cli.context import AddCommand, emit, entries_of, open_database
from ops.embedded.database import open_services
from schemas.errors import UsageError
from schemas.settings import Settings
from schemas.training_record import TrainingMode
from workers.runtime.process import stop_with_parent

if TYPE_CHECKING:
    # Both import PyTorch, which takes seconds that `sigma train --help` must not spend.
    from workers.trainer.request import TrainRequest
    from workers.trainer.trainer import TrainResult


# The profile of a training that names a model or a teacher and no profile.
PRETRAINED_PROFILE = "qwen-3b"

# And of one that names neither, but a query head.
DEFAULT_PROFILE = "tiny"


def add_commands(add: AddCommand) -> None:
    """Declare the command of this group."""
    command = add(
        "train", train, "train a generation: on a manifest, on the store, or from the live one"
    )
    command.add_argument(
        "--manifest", type=Path, metavar="F", help="JSON Lines, Karpathy's JSON, or a folder"
    )
    command.add_argument(
        "--from-store", action="store_true", help="anew, on the images that are stored"
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
    command.add_argument(
        "--profile",
        metavar="NAME|FILE.toml",
        help="tiny (default), small, qwen-3b, qwen-7b, or a file: sigma profiles show",
    )
    command.add_argument(
        "--expect",
        type=int,
        metavar="N",
        help="images that the generation is to hold: gives its identifiers room for them",
    )
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
    _add_pretrained(command)
    _add_dry_run(command)
    command.add_argument(
        "--query-head",
        action="store_true",
        help="teach the model the encoder's vectors of queries: query workers load no encoder",
    )
    command.add_argument(
        "--promote", action="store_true", help="make the new generation live if the gate lets it"
    )


def _add_pretrained(command: ArgumentParser) -> None:
    """Declare what a training begins with."""
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
        "--model",
        metavar="NAME|FOLDER",
        help="pretrained Qwen2.5-VL to train, with the profile qwen-3b unless another is named",
    )
    command.add_argument(
        "--encoder",
        metavar="NAME|FOLDER",
        help="pretrained encoder: efficientnet-minilm, CLIP, SigLIP, …; see docs/encoders.md",
    )
    command.add_argument(
        "--captioner",
        metavar="NAME|FOLDER",
        help="vision-language model, such as Qwen2.5-VL or BLIP, that captions images without any",
    )
    command.add_argument(
        "--teacher",
        metavar="NAME|FOLDER",
        help="jina-reranker-m0, which scores captions for the model to learn from",
    )


def _add_dry_run(command: ArgumentParser) -> None:
    """Declare what only a dry run takes."""
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: print steps, tokens, memory and hours on GPUs, all computed",
    )
    command.add_argument("--gpu", default="a6000", help="dry run: h200, h100, a100, l40s, a6000, …")
    command.add_argument("--gpus", type=int, default=1, metavar="N", help="dry run: how many")
    command.add_argument(
        "--images", type=int, metavar="N", help="dry run: so many images in place of a manifest"
    )
    command.add_argument("--captions", type=int, metavar="N", help="dry run: and so many captions")


def train(options: Namespace, settings: Settings) -> int:
    """`sigma train`"""
    if options.dry_run:
        return _dry_run(options)
    check(options)
    # Imported after the check: PyTorch takes seconds to load.
    from model.training.ranks import is_first_rank, join_ranks, leave_ranks
    from workers.runtime.services import Services
    from workers.trainer.stage_runner import assist_first_rank

    if options.stop_with_parent:
        stop_with_parent()
    join_ranks()
    try:
        if is_first_rank():
            return _train_as_first_rank(options, settings)
        # The other ranks need no database: checkpoints and pictures are files that all can read.
        assist_first_rank(Services(settings, settings.database_url or "").store)
        return 0
    finally:
        leave_ranks()


def _dry_run(options: Namespace) -> int:
    counts = [options.gpus, options.images if options.images is not None else 1]
    if min(counts) < 1 or (options.captions or 0) < 0:
        raise UsageError("--gpus and --images must be 1 or more, --captions 0 or more")
    if (options.manifest is None) == (options.images is None):
        raise UsageError("a dry run needs either --manifest F or --images N --captions N")
    from model.training.dry_run import Corpus, dry_run
    from model.training.hardware import gpu
    from ops.dry_run import corpus_of, document, text

    corpus = Corpus(options.images or 0, options.captions or 0)
    if options.manifest:
        corpus = corpus_of(entries_of(options.manifest, None))
    chosen = chosen_profile(options) or read_profile(PRETRAINED_PROFILE)
    plan = dry_run(chosen, corpus, gpu(options.gpu), options.gpus, refresh=options.refresh)
    emit(document(plan, corpus), options.json, text(plan, corpus))
    return 0


def check(options: Namespace) -> None:
    """`UsageError` when the options contradict each other, or name what there is not."""
    chosen_profile(options)
    from_parent = options.refresh or options.recluster
    sources = []
    if options.manifest:
        sources.append("--manifest")
    if options.from_store:
        sources.append("--from-store")
    if from_parent:
        sources.append("--refresh/--recluster")
    if len(sources) > 1:
        raise UsageError(
            f"{' and '.join(sources)} exclude each other: they name different things to train on; "
            "keep one"
        )
    if not sources and not options.resume:
        raise UsageError(
            "name what to train on: --manifest F, --from-store, --refresh or --recluster; or go on "
            "with --resume"
        )
    if from_parent and (options.base or options.adapt != "auto"):
        raise UsageError(
            "--base and --adapt are for a training from base weights, not for one from the live "
            "generation; leave them out"
        )
    if options.encoder and (from_parent or options.resume):
        raise UsageError(
            "--encoder chooses the encoder of a generation, which --refresh, --recluster and "
            "--resume keep; leave it out, or train anew with --from-store"
        )
    if options.captioner and (options.resume or (options.recluster and not options.refresh)):
        raise UsageError(
            "--captioner captions the images of a training that begins; leave it out with --resume,"
            " which keeps it, and with --recluster alone, which reads no caption"
        )
    if (options.model or options.teacher) and (from_parent or options.resume):
        raise UsageError(
            "--model and --teacher choose what a generation is made of, which --refresh, "
            "--recluster and --resume keep; leave them out, or train anew with --from-store"
        )
    if options.query_head and (from_parent or options.resume):
        raise UsageError(
            "--query-head chooses what a generation is made of, which --refresh, --recluster and "
            "--resume keep; leave it out, or train anew with --from-store"
        )
    if options.expect is not None and (from_parent or options.resume):
        raise UsageError(
            "--expect chooses the shape of identifiers, which --refresh, --recluster and --resume "
            "keep; leave it out, or train anew with --from-store"
        )
    if options.recluster and not options.refresh and options.stage != "all":
        raise UsageError("--recluster alone runs no stage; leave --stage out, or add --refresh")


def chosen_profile(options: Namespace) -> Profile | None:
    """The profile that options name, with the model and the teacher that they name; or None.

    `UsageError` for one that there is not, or that does not take them.
    """
    name = options.profile
    if name is None and (options.model or options.teacher):
        name = PRETRAINED_PROFILE
    if name is None and options.query_head:
        name = DEFAULT_PROFILE
    if name is None:
        return None
    chosen = with_sources(read_profile(name), options.model, options.teacher)
    return replace(chosen, query_head=True) if options.query_head else chosen


def _train_as_first_rank(options: Namespace, settings: Settings) -> int:
    from ops.cli.progress_bar import bar
    from workers.trainer import trainer

    request = training_request(options, settings.encoder)
    entries = entries_of(options.manifest, None) if options.manifest else None
    with open_services(settings) as services, open_database(services, "train") as conn:
        result = trainer.train(services, entries, request, bar)
        if options.promote and result.state == "shadow":
            from ops.jobs.candidate_promotion import CandidatePromoter

            CandidatePromoter.on_services(services, conn).promote(result.generation)
            result = replace(result, state="live")
    emit(result.to_json(), options.json, summary(result))
    return 0


def training_request(options: Namespace, encoder: str | None = None) -> "TrainRequest":
    """The trainer's request for parsed options; `encoder` is that of a run that names none."""
    from model.network.base import SHIPPED
    from workers.trainer.request import STAGES, TrainRequest

    return TrainRequest(
        profile=chosen_profile(options),
        until=STAGES[-1] if options.stage == "all" else options.stage,
        resume=options.resume,
        seed=options.seed,
        base=options.base or SHIPPED,
        adapt=options.adapt,
        encoder=options.encoder or encoder,
        captioner=options.captioner,
        mode=_mode(options),
        expect=options.expect,
        recluster=options.recluster and options.refresh,
    )


def _mode(options: Namespace) -> TrainingMode | None:
    """The mode that is asked for; None leaves it to the training that is resumed."""
    if options.refresh:
        return "refresh"
    if options.recluster:
        return "recluster"
    return "full" if options.manifest or options.from_store else None


def summary(result: "TrainResult") -> str:
    """What a person reads of a result: what came out, what to do next, what was left out."""
    next_steps = {
        "building": "go on with --resume",
        "shadow": f"make it live with: sigma generations promote {result.generation}",
    }
    next_step = next_steps.get(result.state, "it answers queries")
    recluster = result.record.recluster
    if result.record.mode == "recluster" and recluster is not None:
        done = f"{recluster.moved:,} of {result.images:,} images have moved"
    else:
        done = f"trained on {result.images:,} images"
    lines = [f"generation {result.generation} is {result.state}, {done}; {next_step}"]
    lines += [f"left out {entry.path}: {entry.reason}" for entry in result.rejected]
    return "\n".join(lines)
