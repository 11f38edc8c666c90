"""The stage checkpoint: what a killed stage is resumed from, and damage to it that has a name.

The Trainer writes it and its ranks share the work; the digests beside it are this project's.
"""

import json
from pathlib import Path

from model.network.file_digests import check_digests, digests_of, file_names, record_digests
from model.training.ranks import from_all_ranks, is_first_rank, own_share, wait_for_all_ranks
from schemas.errors import RefuseToStartError

# Written last, so a checkpoint without it was cut short.
_STATE = "trainer_state.json"


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of the Trainer; one whose saving was cut short is passed over."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)
    for checkpoint in checkpoints:
        try:
            json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return checkpoint
    return None


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def write_stage_digests(checkpoint: Path) -> None:
    """Write the digests of all that is in a checkpoint but its state. Every rank must call this."""
    wait_for_all_ranks()
    shares = from_all_ranks(digests_of(checkpoint, own_share(file_names(checkpoint))))
    if is_first_rank():
        record_digests(checkpoint, {name: each[name] for each in shares for name in each})


def check_stage_digests(checkpoint: Path) -> None:
    """Compare a checkpoint with its digests, of which each rank reads a share.

    `RefuseToStartError` on every rank names a file that differs.
    """
    damage = ""
    try:
        check_digests(checkpoint, own_share, f"the stage begins anew without {checkpoint.parent}")
    except RefuseToStartError as error:
        damage = str(error)
    for found in from_all_ranks(damage):
        if found:
            raise RefuseToStartError(found)
