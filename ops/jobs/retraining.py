"""The jobs `retrain` and `recluster`: make a candidate generation with a trainer process.

A job starts the trainer and waits for it. Whatever it makes goes live by the gate, not here.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.network.profile_document import SUFFIX, profile_toml, recorded_profile
from ops.embedded.isolation import ISOLATED_ENVIRONMENT
from schemas.errors import WorkFailedError
from schemas.maintenance_results import CandidateResult, CandidateSkipped
from schemas.settings import Settings
from schemas.training_record import KEPT_ENCODER, TrainingRecord
from stream.lease import is_held
from workers.generations.retiring import drop, refused_by_gate
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.counters import totals
from workers.repository.generations import Generation
from workers.repository.training_data import TRAINER, untrained_images
from workers.runtime.services import Services

_CLAIM_INTERVAL_S = 0.5
"""Seconds between two attempts to claim the right to train."""

_CLAIM_TIMEOUT_S = 60.0
"""Seconds that a trainer whose job died may take to end: it notices at once, and the server notices
its closed connection."""

_NICE = 10
"""Priority of the trainer: queries and arrivals come first."""

_ERROR_PREFIX = "sigma: "
"""How the command line begins the message of an error."""


@dataclass(frozen=True, slots=True)
class TrainerProcess:
    """How to start a trainer: `sigma train` in a process of its own, on the same installation."""

    home: Path
    database_url: str
    processes: int
    """One for each GPU."""

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """Run one training from start to end; returns the exit code.

        Its output is appended to the file `log`. It ends when this process does: it watches its
        standard input, whose other end this process holds.
        """
        # Appended to, not replaced: the log of a run that failed is still wanted after the next.
        log.parent.mkdir(parents=True, exist_ok=True)
        installation = {
            "SIGMA_HOME": str(self.home),
            "SIGMA_DATABASE_URL": self.database_url,
        }
        environment = os.environ | ISOLATED_ENVIRONMENT | installation
        command = trainer_command(self.processes, arguments)
        with (
            log.open("ab") as output,
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment
            ) as process,
        ):
            try:
                return process.wait()
            finally:
                # Does nothing after a normal end; an interrupted training can be resumed.
                process.terminate()


@dataclass(frozen=True, slots=True)
class CandidateTrainer:
    """Makes candidate generations, one at a time: each is assigned every arrival."""

    conn: Connection
    trainer: TrainerProcess
    checkpoints: Path
    """The folder of all generations' checkpoints."""
    drop_generation: Callable[[int], None]
    """Gives up a candidate."""

    @classmethod
    def on_services(cls, services: Services, conn: Connection) -> "CandidateTrainer":
        """A trainer of this installation."""
        trainer = TrainerProcess(
            services.home, services.database_url, services.settings.training_processes
        )
        checkpoints = services.checkpoints
        return cls(conn, trainer, checkpoints, lambda number: drop(conn, checkpoints, number))

    def retrain(self, settings: Settings) -> CandidateResult | CandidateSkipped:
        """A candidate with fresher weights: by refresh, or in full where the settings say so."""
        if settings.retrain == "full":
            return self._make_candidate("retrain", ["--from-store", *self._as_live(settings)])
        return self._make_candidate_if_new("retrain", ["--refresh"])

    def recluster(self) -> CandidateResult | CandidateSkipped:
        """A candidate with a codebook fitted to what is stored now, and the weights as they are."""
        return self._make_candidate_if_new("recluster", ["--recluster"])

    def _as_live(self, settings: Settings) -> list[str]:
        """Options of a training in full that makes a generation like the live one.

        Its profile and its encoder, and its room or enough for what it holds.
        """
        live = generations.live(self.conn)
        if live is None:
            return []
        images = max(totals(self.conn, live.id).images, live.shape.comfortable, 1)
        options = ["--expect", str(images)]
        training = live.config.training
        if training.profile_numbers is not None:
            options += ["--profile", str(self._profile_file(live))]
        elif training.profile is not None:
            options += ["--profile", training.profile]
        encoder = encoder_of(training, self.checkpoints / live.folder)
        # Whoever sets one wants another than the live one.
        if settings.encoder is None and encoder is not None:
            options += ["--encoder", encoder]
        return options

    def _profile_file(self, live: Generation) -> Path:
        """A file with the profile of a generation, its own numbers included, for a trainer."""
        file = self.trainer.home / "profiles" / f"g{live.id}{SUFFIX}"
        file.parent.mkdir(parents=True, exist_ok=True)
        training = live.config.training
        own = recorded_profile(training.profile or "", training.profile_numbers)
        file.write_text(profile_toml(own), encoding="utf-8")
        return file

    def _make_candidate_if_new(
        self, job: str, arguments: Sequence[str]
    ) -> CandidateResult | CandidateSkipped:
        """As `_make_candidate`, unless there is nothing that the live generation has not learnt."""
        if generations.unfinished(self.conn) is None:
            live = generations.live(self.conn)
            if live is None:
                return CandidateSkipped(
                    "no generation is live; train the first one with: sigma train --manifest F"
                )
            if not untrained_images(self.conn, live.id):
                why = f"generation {live.id} was trained on every image"
                return CandidateSkipped(why)
        return self._make_candidate(job, arguments)

    def _make_candidate(
        self, job: str, arguments: Sequence[str]
    ) -> CandidateResult | CandidateSkipped:
        """Train, or finish the training that a run which died has left."""
        # First, because the trainer of a run that died may be about to finish its candidate.
        wait_for_trainer(self.conn)
        waiting = self._waiting_candidates()
        if waiting:
            candidate = waiting[-1]
            why = f"generation {candidate.id} is a candidate already and waits for its gate"
            return CandidateSkipped(why, _candidate(candidate))
        unfinished = generations.unfinished(self.conn)
        # A training from a manifest is resumed by the person who has the manifest.
        resumable = unfinished is not None and unfinished.config.training.corpus == "store"
        newest_before = self._newest_number()
        log = self.trainer.home / "logs" / f"{job}.log"
        exit_code = self.trainer.run(["--resume"] if resumable else arguments, log)
        if resumable:
            made = unfinished
        else:
            made = self._first_after(newest_before)
        if exit_code or made is None:
            raise WorkFailedError(
                f"the training ended with exit code {exit_code}: {last_error(log)}; "
                f"its log is {log}"
            )
        return _candidate(generations.get(self.conn, made.id), resumed=resumable)

    def _waiting_candidates(self) -> list[Generation]:
        """Candidates that the gate may still let through; those that it refused are dropped."""
        live = generations.live(self.conn)
        waiting = []
        for generation in generations.generations(self.conn):
            if generation.state != "shadow":
                continue
            # A refused one would be assigned every arrival for ever, and nobody waits for it.
            if refused_by_gate(generation, live):
                self.drop_generation(generation.id)
            else:
                waiting.append(generation)
        return waiting

    def _newest_number(self) -> int:
        numbers = [generation.id for generation in generations.generations(self.conn)]
        return max(numbers, default=0)

    def _first_after(self, number: int) -> Generation | None:
        for generation in generations.generations(self.conn):
            if generation.id > number:
                return generation
        return None


def encoder_of(training: TrainingRecord, folder: Path) -> str | None:
    """What to ask for to get the pretrained encoder of a generation again; None where it has none.

    `folder` is that of its checkpoint, whose own files need no hub. The folder that it once came
    from may be gone, and a package's encoder is to learn from today's captions.
    """
    source = training.encoder_source
    kept = folder / KEPT_ENCODER
    # Only names of the hub have a slash and name no folder that is there.
    is_at_hand = source is None or "/" not in source or Path(source).is_dir()
    return source if is_at_hand or not kept.is_dir() else str(kept)


def trainer_command(processes: int, arguments: Sequence[str]) -> list[str]:
    """The command line of a trainer, under torch's launcher when there are several processes."""
    python = ["nice", "-n", str(_NICE), sys.executable, "-P", "-m"]
    if processes > 1:
        launcher = "torch.distributed.run"
        python += [launcher, "--standalone", "--nproc-per-node", str(processes), "-m"]
    return [*python, "ops.cli", "train", *arguments, "--stop-with-parent", "--json"]


def wait_for_trainer(conn: Connection) -> None:
    """Wait until no training runs on the database; `WorkFailedError` after `_CLAIM_TIMEOUT_S`."""
    deadline = time.monotonic() + _CLAIM_TIMEOUT_S
    while is_held(conn, TRAINER):
        if time.monotonic() > deadline:
            raise WorkFailedError(
                "another training runs on this database, and there can be one at a time; wait for "
                "its end or stop it"
            )
        time.sleep(_CLAIM_INTERVAL_S)


def last_error(log: Path) -> str:
    """The newest error message of the command line in a log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    for line in reversed(text.splitlines()):
        if line.startswith(_ERROR_PREFIX):
            return line.removeprefix(_ERROR_PREFIX)
    return "it left no message"


def _candidate(generation: Generation, *, resumed: bool = False) -> CandidateResult:
    config = generation.config
    return CandidateResult(
        generation.id, generation.state, config.training, config.failure, resumed
    )
