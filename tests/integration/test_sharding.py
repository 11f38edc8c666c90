"""A training that two processes divide: what it learns, and how it goes on after a kill."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.network.compute import Compute
from tests.integration.sharded_training import train_stages
from tests.unit.model.network.test_file_digests import flip

# Sums in another order, in float32; what Adam makes of that grows with the steps.
TOLERANCE = 1e-4


def launched(folder: Path, lora_rank: int, *killed: str) -> str:
    """Two processes train in a folder; what they say when they fail, nothing otherwise."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ["-m", "tests.integration.sharded_training", folder, str(lora_rank), *killed]
    done = subprocess.run(
        [sys.executable, *launcher, *script],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return done.stderr if done.returncode else ""


def losses_of(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "rank0.json").read_text())
    return found


def weights_of(folder: Path, rank: int) -> dict[str, Any]:
    with np.load(folder / f"rank{rank}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module", params=[0, 2], ids=["all weights", "adapters"])
def lora_rank(request: pytest.FixtureRequest) -> int:
    """Rank of the adapters; 0 trains all weights."""
    rank: int = request.param
    return rank


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, lora_rank: int) -> Path:
    """The folder of a sharded training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    assert launched(folder, lora_rank) == ""
    return folder


def test_two_processes_that_share_the_weights_have_the_losses_of_one(
    straight: Path, lora_rank: int, tmp_path: Path
) -> None:
    alone = train_stages(tmp_path, Compute(lora_rank=lora_rank), None)
    sharded = losses_of(straight)
    assert sharded.keys() == alone["losses"].keys() == {"memorize", "comprehend", "align"}
    for stage, by_step in alone["losses"].items():
        assert len(by_step) > 3
        assert sharded[stage] == pytest.approx(by_step, rel=TOLERANCE), stage
    first, second = (weights_of(straight, rank) for rank in (0, 1))
    for name, value in alone["weights"].items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], value, atol=TOLERANCE, err_msg=name)


# Four trainings of two processes each. Adapters are killed in every stage by test_true_shape.py.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lora_rank", [0], indirect=True, ids=["all weights"])
def test_a_killed_one_goes_on_from_its_sharded_checkpoint_with_the_same_losses(
    straight: Path, lora_rank: int, tmp_path: Path
) -> None:
    assert launched(tmp_path, lora_rank, "align", "7")
    (checkpoint,) = (tmp_path / "align").glob("checkpoint-*")
    shards = sorted(checkpoint.glob("*/*.distcp"))
    # A file of each process, for the weights and for the optimizer.
    assert len(shards) == 4
    whole = shards[3].read_bytes()
    flip(shards[3], 0.5)
    said = launched(tmp_path, lora_rank)
    assert f"RefuseToStartError: {shards[3]} cannot be read as it was written" in said
    assert f"the stage begins anew without {tmp_path / 'align'}" in said
    shards[3].write_bytes(whole)
    assert launched(tmp_path, lora_rank) == ""
    undisturbed, resumed = losses_of(straight)["align"], losses_of(tmp_path)["align"]
    begun = int(checkpoint.name.rpartition("-")[2])
    assert list(resumed) == [step for step in undisturbed if int(step) >= begun] != []
    for step, loss in resumed.items():
        assert loss == pytest.approx(undisturbed[step], rel=1e-6), step
