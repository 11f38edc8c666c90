"""Commands that make material of their own: `demo`, `corpus`, `base`."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from ops.cli.context import AddCommand, emit
from schemas.settings import Settings

# Fields of `BaseConfig` that options may set.
BASE_NUMBERS = (
    "images",
    "captions",
    "seed",
    "hinted_epochs",
    "contrastive_epochs",
    "teacher_epochs",
    "vision_epochs",
    "pretrain_epochs",
    "probe",
)


def add_commands(add: AddCommand) -> None:
    """Declare the commands of this group."""
    demo_command = add("demo", demo, "the main job end to end on embedded defaults")
    demo_command.add_argument(
        "--images",
        type=int,
        default=3500,
        help="images in all; a seventh is streamed unseen (default 3500)",
    )
    demo_command.add_argument("--seed", type=int, default=0)
    demo_command.add_argument(
        "--ablate",
        action="store_true",
        help="also measure one posting an image, analytic assignment, and search without a guide",
    )
    corpus_command = add("corpus", corpus, "render a corpus of scenes with captions")
    corpus_command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    corpus_command.add_argument("--images", type=int, default=1000)
    corpus_command.add_argument("--seed", type=int, default=0)
    corpus_command.add_argument(
        "--start", type=int, default=0, help="number of the first image; ranges continue one stream"
    )
    corpus_command.add_argument("--split", help="split written into the manifest")
    base_command = add(
        "base",
        base,
        "stage 0: make the tiny profile's base (minutes on a GPU, about an hour on two cores)",
    )
    base_command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    base_command.add_argument(
        "--continue-from",
        metavar="FOLDER",
        help="train a base further, that of a folder or `shipped`; without it, fresh weights",
    )
    for name in BASE_NUMBERS:
        base_command.add_argument(f"--{name.replace('_', '-')}", type=int)


def demo(options: Namespace, settings: Settings) -> int:
    """`sigma demo`"""
    from ops.demo.demo import DemoConfig
    from ops.demo.demo import demo as run_demo
    from ops.demo.story import story

    config = DemoConfig(images=options.images, seed=options.seed, ablate=options.ablate)
    document = run_demo(settings, config)
    emit(document, options.json, story(document))
    return 0


def corpus(options: Namespace, settings: Settings) -> int:
    """`sigma corpus`"""
    from ops.cli.progress_bar import bar
    from ops.scenes.corpus import CorpusConfig, generate

    config = CorpusConfig(options.images, seed=options.seed, start=options.start)
    with bar("render", options.images) as progress:
        manifest = generate(config, options.out, options.split, progress.update)
    document = {"manifest": str(manifest), "images": options.images}
    emit(document, options.json, f"wrote {manifest}")
    return 0


def base(options: Namespace, settings: Settings) -> int:
    """`sigma base`"""
    from ops.cli.progress_bar import bar
    from ops.scenes.make_base import BaseConfig, build_base

    chosen = {}
    for name in BASE_NUMBERS:
        value = getattr(options, name)
        if value is not None:
            chosen[name] = value
    config = BaseConfig(continue_from=options.continue_from)
    description = build_base(replace(config, **chosen), options.out, bar)
    emit(description, options.json, json.dumps(description, indent=2))
    return 0
