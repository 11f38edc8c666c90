"""The plan: with which identifiers a generation begins, which of them it learns, and which images are left to the model."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from model.identifiers.codebook import Codebook, pack_all
from model.identifiers.instance_suffixes import assign_suffixes, keep_suffixes
from model.training.replay import refresh_rows
from schemas.identifiers import IdentifierShape
from schemas.records import BoolArray, IntArray
from workers.repository.training_data import IndexedImages, sampled

PLAN = "plan.npz"


@dataclass(frozen=True, slots=True)
class Plan:
    """M images and where each will stand: keys, leaves and suffixes, all (M,) int64.

    `learnt` (M,): it is trained on now. `trained` (M,): the model was taught this very identifier, now or by a parent.
    `moved` (M,): it stood elsewhere in the parent. Images outside the plan get what the model generates.
    """

    image_keys: IntArray
    leaves: IntArray
    suffixes: IntArray
    learnt: BoolArray
    trained: BoolArray
    moved: BoolArray

    def rows(self, kept: BoolArray) -> "Plan":
        """The plan of some of its images, (M,) bool."""
        return replace(self, **{f.name: getattr(self, f.name)[kept] for f in fields(self)})

    def without_lost(self, wanted: IntArray, found: IntArray) -> "Plan":
        """The plan less the `wanted` keys that were not `found` any more."""
        return self.rows(~np.isin(self.image_keys, np.setdiff1d(wanted, found)))

    def identifiers(self, image_keys: IntArray, shape: IdentifierShape) -> IntArray:
        """(N, 5) of planned images by key."""
        order = np.argsort(self.image_keys)
        at = order[np.searchsorted(self.image_keys, image_keys, sorter=order)]
        return np.column_stack([codes_of(self.leaves[at], shape), self.suffixes[at]])

    def save(self, folder: Path) -> None:
        """Write `plan.npz`, whole or not at all."""
        aside = folder / f".{PLAN}"
        with aside.open("wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        aside.replace(folder / PLAN)

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """The plan that `save` left."""
        with np.load(folder / PLAN, allow_pickle=False) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})


def codes_of(leaves: IntArray, shape: IdentifierShape) -> IntArray:
    """(N, 4) int64 codes of (N,) packed leaves."""
    columns = [
        leaves // (shape.leaves // shape.prefixes(level + 1)) % shape.codes[level]
        for level in range(4)
    ]
    codes = np.column_stack(columns).astype(np.int64)
    if not np.array_equal(pack_all(codes, shape), leaves):
        raise AssertionError("packing and unpacking leaves disagree")
    return codes


def plan_full(image_keys: IntArray, leaves: IntArray, shape: IdentifierShape) -> Plan:
    """All images are learnt, under the codebook's leaves."""
    suffixed = assign_suffixes(leaves, shape)
    yes, no = np.ones(len(image_keys), np.bool_), np.zeros(len(image_keys), np.bool_)
    return Plan(image_keys, suffixed.leaves, suffixed.suffixes, learnt=yes, trained=yes, moved=no)


def plan_recluster(held: IndexedImages, leaves: IntArray, shape: IdentifierShape) -> Plan:
    """Every image of the parent, under `leaves` (M,) of the new codebook; nothing is learnt. An image that moves is no longer
    one that the model was trained on: a refresh will teach it the new place."""
    moved = leaves != held.leaves
    suffixed = keep_suffixes(leaves, np.where(moved, -1, held.suffixes), shape)
    return Plan(
        held.image_keys,
        suffixed.leaves,
        suffixed.suffixes,
        np.zeros_like(moved),
        held.trained & ~moved,
        moved,
    )


def plan_refresh(
    held: IndexedImages,
    leaves: IntArray,
    shape: IdentifierShape,
    *,
    replay: float,
    limit: int,
    seed: int,
) -> Plan:
    """What the parent was trained on keeps its identifiers; what it was not trained on, and has captions, is learnt, with replay.

    A new image keeps the leaf that the parent's model generated for it: the model half knows it, nothing has to move, and
    such leaves retrieve better than the codebook's (docs/experiments/). At most `limit` images are learnt.
    """
    moved = leaves != held.leaves
    known = held.trained & ~moved
    new = sampled(np.flatnonzero(held.captioned & ~known), max(1, int(limit / (1 + replay))), seed)
    kept = known.copy()
    kept[new] = True
    rows = np.flatnonzero(kept)
    able = rows[held.captioned[rows]]
    learnt = np.zeros(len(kept), np.bool_)
    learnt[able[refresh_rows(known[able], replay, seed)]] = True
    suffixed = keep_suffixes(leaves[rows], np.where(moved, -1, held.suffixes)[rows], shape)
    yes = np.ones(len(rows), np.bool_)
    return Plan(
        held.image_keys[rows],
        suffixed.leaves,
        suffixed.suffixes,
        learnt[rows],
        trained=yes,
        moved=moved[rows],
    )


def leaves_in(codebook: Codebook, codes: IntArray) -> IntArray:
    """(N,) packed leaves of (N, 4) codes of a codebook."""
    return pack_all(codes, codebook.config.shape)
