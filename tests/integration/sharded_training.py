"""What every process of a sharded training does: the three stages of a small model.

`python -m tests.integration.sharded_training FOLDER RANK [STAGE STEP]`, with adapters of that rank;
with a stage and a step every process kills itself there.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from model.network.compute import Compute
from model.network.parts import parts_from_base
from model.progress import Bar, Progress, quiet
from model.training.ranks import is_first_rank, join_ranks, leave_ranks, sum_over_ranks, world_size
from model.training.stage_trainer import StageTrainer
from model.training.stages import run_stage
from tests.unit.model.conftest import small_base, small_profile
from tests.unit.model.network.test_query_head import SPACE, taught

SHARDED = Compute(sharded=True, micro_batch=3, checkpointing=True)


def dying(step: int) -> Progress:
    """A progress that kills its own process at a step."""

    @contextmanager
    def open_bar(label: str, total: int) -> Iterator[Bar]:
        class Dying:
            done = 0

            def update(self, n: int, **figures: float) -> None:
                self.done += n
                if self.done == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        yield Dying()

    return open_bar


def train_stages(folder: Path, compute: Compute, killed: tuple[str, int] | None) -> dict[str, Any]:
    """Train; losses of all ranks together by stage and step, and the weights by name."""
    parts = parts_from_base(small_base(), replace(small_profile(), compute=compute))
    # With a query head, which only alignment needs: the other stages run it idly.
    torch.manual_seed(1)
    parts.sigma.add_query_head(SPACE)
    data = taught(parts)
    losses: dict[str, dict[str, float]] = {}
    step = StageTrainer.training_step

    def noted(self: StageTrainer, *given: Any, **named: Any) -> torch.Tensor:
        loss = step(self, *given, **named)
        total = float(sum_over_ranks(loss.clone())) / world_size()
        losses.setdefault(self.stage.name, {})[str(self.state.global_step)] = total
        return loss

    with patch.object(StageTrainer, "training_step", noted):
        for numbers in parts.sigma.profile.stages:
            # Whole batches only: several processes fill up the last one of an epoch.
            stage = replace(numbers, replay=0.5 if numbers.replay else 0.0)
            at = killed[1] if killed is not None and killed[0] == stage.name else 0
            progress = dying(at) if at else quiet
            own = folder / stage.name
            run_stage(parts.sigma, data, stage, own, seed=3, resume=True, progress=progress)
    weights = {name: value.numpy() for name, value in parts.sigma.state_dict().items()}
    return {"losses": losses, "weights": weights}


def main(folder: Path, lora_rank: int, killed: tuple[str, int] | None) -> None:
    torch.set_num_threads(1)
    join_ranks()
    done = train_stages(folder, replace(SHARDED, lora_rank=lora_rank), killed)
    rank = 0 if is_first_rank() else 1
    np.savez(folder / f"rank{rank}.npz", **done["weights"])
    (folder / f"rank{rank}.json").write_text(json.dumps(done["losses"]))
    leave_ranks()


if __name__ == "__main__":
    place = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else None
    main(Path(sys.argv[1]), int(sys.argv[2]), place)
