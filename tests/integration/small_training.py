"""A training of seconds for the tests: random pictures, a small model of the real class."""

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from model.network.profiles import Profile, Stage, profile
from model.progress import Bar, Progress, quiet
from model.training.stage_gates import Gates
from schemas.events import ImageAccepted
from schemas.settings import Settings
from tests.unit.model.conftest import TEXTS, pictures, small_base, small_profile
from workers.repository.connection import Connection
from workers.repository.image_acceptance import accept_images
from workers.runtime.services import Services
from workers.trainer.request import TrainRequest
from workers.trainer.trainer import TrainResult, train

LENIENT = Gates(progress=-1.0, drop=1.0, rise=100.0, wins=0.0, similarity_wins=0.0)
"""Random pictures cannot be learnt in seconds; the gates' own tests are elsewhere."""


def tiny_services(home: Path, database: str) -> Services:
    """Services whose home has a base to train from."""
    torch.set_num_threads(1)
    if not (home / "base").is_dir():
        small_base().save(home / "base")
    return Services(Settings(home=home), database)


def profile_of_tests(vision: bool = False) -> Profile:
    """Three short stages, and shorter ones for a refresh; `vision` trains the vision tower too."""
    small = small_profile()
    short: tuple[Stage, ...] = tuple(replace(stage, epochs=1.0) for stage in small.stages)
    # A checkpoint does not carry these two: a loaded one has the text limit of its named profile.
    return replace(
        small.with_refresh(short),
        views=0 if vision else 1,
        max_text_tokens=profile("tiny").max_text_tokens,
    )


def request(services: Services, **changes: Any) -> TrainRequest:
    """A training of that profile from that base."""
    base = services.home / "base"
    return replace(
        TrainRequest(profile_of_tests(), base=base, adapt="never", gates=LENIENT), **changes
    )


def fill(
    services: Services,
    conn: Connection,
    count: int,
    first: int = 0,
    captions: Sequence[str] = TEXTS,
) -> list[int]:
    """Random pictures in the store, accepted; returns their keys."""
    images = []
    for number, pixels in enumerate(pictures(count, seed=first + 1), first):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, format="PNG")
        own = (
            (captions[number % len(captions)], captions[(number + 1) % len(captions)])
            if captions
            else ()
        )
        images.append(
            ImageAccepted(
                image_id=f"image {number:03}",
                uri=f"file:///somewhere/{number}.png",
                normalized_uri=services.store.put(data.getvalue()),
                checksum=f"{number:064}",
                width=56,
                height=56,
                arrived_at=datetime.now(UTC),
                captions=own,
                test_captions=own[:1],
            )
        )
    return [stored.image_key for stored in accept_images(conn, images)]


def dying(label: str, step: int) -> Progress:
    """A progress that kills its own process, with SIGKILL, at a step of a bar."""

    @contextmanager
    def open_bar(name: str, total: int) -> Iterator[Bar]:
        class Dying:
            done = 0

            def update(self, n: int, **figures: float) -> None:
                self.done += n
                if name == label and self.done >= step:
                    os.kill(os.getpid(), signal.SIGKILL)

        yield Dying()

    return open_bar


def train_in(
    home: Path, database: str, killed: tuple[str, int] | None, changes: dict[str, Any]
) -> TrainResult:
    """One training, in a process of its own if it is to be killed at a step."""
    services = tiny_services(home, database)
    progress = quiet if killed is None else dying(*killed)
    return train(services, None, request(services, **changes), progress)


def states(folder: Path) -> dict[str, np.ndarray]:
    """The weights of a checkpoint by name."""
    from model.network.checkpoint import load_checkpoint

    return {
        name: value.numpy() for name, value in load_checkpoint(folder).sigma.state_dict().items()
    }


def rank_of_torchrun(home: Path, database: str) -> None:
    """What every process of a torchrun does; each leaves the weights that it ended with."""
    from model.training.ranks import is_first_rank, join_ranks, leave_ranks
    from workers.trainer.stage_runner import StageOutcome, StageRunner, assist_first_rank

    run, ended = StageRunner.run, []

    def noted(self: StageRunner, *given: Any) -> StageOutcome:
        ended.append(self.sigma)
        return run(self, *given)

    patch.object(StageRunner, "run", noted).start()
    join_ranks()
    torch.set_num_threads(1)
    rank = 0 if is_first_rank() else 1
    if is_first_rank():
        services = tiny_services(home, database)
        train(services, None, request(services, profile=profile_of_tests(vision=True)), quiet)
    else:
        assist_first_rank(Services(Settings(home=home), "").store)
    np.savez(
        home / f"rank{rank}.npz",
        **{name: value.numpy() for name, value in ended[-1].state_dict().items()},
    )
    leave_ranks()


if __name__ == "__main__":
    rank_of_torchrun(Path(sys.argv[1]), sys.argv[2])
