"""The identifier plan: the identifiers a generation begins with, and which of them are learnt."""

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from model.identifiers.codebook import Codebook, pack_all
from model.identifiers.instance_suffixes import keep_suffixes
from model.training.replay import refresh_rows
from schemas.errors import RefuseToStartError
from schemas.identifiers import LEVELS, IdentifierShape
from schemas.records import BoolArray, IntArray
from workers.repository.training_data import IndexedImages, sampled

# File of the plan in a generation's folder; its arrays have the names of the fields.
PLAN = "plan.npz"


@dataclass(frozen=True, slots=True)
class IdentifierPlan:
    """M images and their identifiers. Images outside the plan get what the model generates."""

    image_keys: IntArray
    """(M,) int64"""
    leaves: IntArray
    """(M,) int64, id1 to id4 packed"""
    suffixes: IntArray
    """(M,) int64, id5; beyond the shape where every leaf was full, and then not learnt"""
    learnt: BoolArray
    """(M,) whether it is trained on now"""
    trained: BoolArray
    """(M,) whether the model was taught this very identifier, now or by a parent"""
    moved: BoolArray
    """(M,) whether it had another leaf in the parent"""

    def __len__(self) -> int:
        return len(self.image_keys)

    def select(self, mask: BoolArray) -> "IdentifierPlan":
        """The plan of some of its images, (M,) bool."""
        return IdentifierPlan(
            image_keys=self.image_keys[mask],
            leaves=self.leaves[mask],
            suffixes=self.suffixes[mask],
            learnt=self.learnt[mask],
            trained=self.trained[mask],
            moved=self.moved[mask],
        )

    def without_missing(self, wanted: IntArray, present: IntArray) -> "IdentifierPlan":
        """The plan less those of the `wanted` keys that are not `present` any more."""
        missing = np.setdiff1d(wanted, present)
        return self.select(~np.isin(self.image_keys, missing))

    def identifiers(self, image_keys: IntArray, shape: IdentifierShape) -> IntArray:
        """(N, 5) identifiers of (N,) planned images, in the order of the keys."""
        # Plans are not sorted by key: that of a manifest has the order of its entries.
        order = np.argsort(self.image_keys)
        rows = order[np.searchsorted(self.image_keys, image_keys, sorter=order)]
        return np.column_stack([codes_of(self.leaves[rows], shape), self.suffixes[rows]])

    def save(self, folder: Path) -> None:
        """Write `plan.npz`, whole or not at all."""
        # Renamed last: a process killed here leaves no half plan to resume with.
        unfinished = folder / f".{PLAN}"
        with unfinished.open("wb") as file:
            arrays: dict[str, Any] = {"digest": np.array(self._digest()), **self._arrays()}
            np.savez(file, **arrays)
        unfinished.replace(folder / PLAN)

    @classmethod
    def load(cls, folder: Path) -> "IdentifierPlan":
        """The plan that `save` wrote; `RefuseToStartError` when it is damaged."""
        file = folder / PLAN
        try:
            with np.load(file, allow_pickle=False) as arrays:
                plan = cls(**{field.name: arrays[field.name] for field in fields(cls)})
                # A plan of an older version has none.
                digest = str(arrays["digest"]) if "digest" in arrays else plan._digest()
        # Damage shows as whatever the readers of ZIP and arrays stumble over.
        except Exception as error:
            raise RefuseToStartError(
                f"the identifier plan {file} cannot be read ({error}); restore it or train anew"
            ) from error
        if digest != plan._digest():
            raise RefuseToStartError(
                f"the identifier plan {file} is not what was written; restore it or train anew"
            )
        return plan

    def _arrays(self) -> dict[str, IntArray | BoolArray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def _digest(self) -> str:
        """SHA-256 of names, types, shapes and contents."""
        content = hashlib.sha256()
        for name, array in self._arrays().items():
            content.update(f"{name} {array.dtype.str} {array.shape}".encode())
            content.update(np.ascontiguousarray(array).tobytes())
        return content.hexdigest()


def codes_of(leaves: IntArray, shape: IdentifierShape) -> IntArray:
    """(N, 4) int64 codes of (N,) packed leaves."""
    columns = []
    for level in range(LEVELS):
        leaves_below = shape.leaves // shape.prefixes(level + 1)
        columns.append(leaves // leaves_below % shape.codes[level])
    codes = np.column_stack(columns).astype(np.int64)
    # A wrong code would be learnt without any error, so pay for the inverse.
    if not np.array_equal(pack_all(codes, shape), leaves):
        raise AssertionError("packing and unpacking leaves disagree")
    return codes


def leaves_in(codebook: Codebook, codes: IntArray) -> IntArray:
    """(N,) packed leaves of (N, 4) codes of a codebook."""
    return pack_all(codes, codebook.config.shape)


def plan_full(image_keys: IntArray, leaves: IntArray, shape: IdentifierShape) -> IdentifierPlan:
    """The plan of a full training: every image is learnt, under the codebook's (M,) leaves.

    Images for which the shape has no identifier are left out: the model generates their leaves.
    """
    suffixed = keep_suffixes(leaves, np.full(len(leaves), -1, dtype=np.int64), shape)
    every = np.ones(len(image_keys), np.bool_)
    plan = IdentifierPlan(
        image_keys=image_keys,
        leaves=suffixed.leaves,
        suffixes=suffixed.suffixes,
        learnt=every,
        trained=every,
        moved=~every,
    )
    return plan.select(suffixed.suffixes < shape.suffixes)


def plan_recluster(
    parent: IndexedImages, leaves: IntArray, shape: IdentifierShape
) -> IdentifierPlan:
    """The plan of a re-clustering: all images of the parent, under (M,) leaves of the new codebook.

    Nothing is learnt. An image that moves is not trained any more: a refresh will teach it its new
    identifier.
    """
    moved = leaves != parent.leaves
    # -1 asks for a new suffix; the others keep theirs.
    suffixed = keep_suffixes(leaves, np.where(moved, -1, parent.suffixes), shape)
    return IdentifierPlan(
        image_keys=parent.image_keys,
        leaves=suffixed.leaves,
        suffixes=suffixed.suffixes,
        learnt=np.zeros(len(leaves), np.bool_),
        trained=parent.trained & ~moved & (suffixed.suffixes < shape.suffixes),
        moved=moved,
    )


def plan_refresh(
    parent: IndexedImages,
    leaves: IntArray,
    shape: IdentifierShape,
    *,
    replay: float,
    limit: int,
    seed: int,
) -> IdentifierPlan:
    """The plan of a refresh: trained images keep their identifiers, new ones are learnt.

    `leaves` (M,) are those of the parent, or of a new codebook for images that move. `replay` is
    how many known images are learnt again for each new one. At most `limit` images are learnt.

    A new image keeps the leaf that the parent's model generated for it: the model half knows it,
    nothing has to move, and such leaves retrieve better than the codebook's (docs/experiments/).
    """
    moved = leaves != parent.leaves
    known = parent.trained & ~moved
    unknown = np.flatnonzero(~known)
    # New images and the replay that goes with them stay within the limit together.
    new = sampled(unknown, max(1, int(limit / (1 + replay))), seed)
    planned = known.copy()
    planned[new] = True
    rows = np.flatnonzero(planned)
    learnt = np.zeros(len(planned), np.bool_)
    learnt[rows[refresh_rows(known[rows], replay, seed)]] = True
    # An image that arrived beyond the shape asks for a suffix that can be learnt.
    stays = ~moved & (parent.suffixes < shape.suffixes)
    suffixed = keep_suffixes(leaves[rows], np.where(stays, parent.suffixes, -1)[rows], shape)
    # There is no token for the others.
    learnable = suffixed.suffixes < shape.suffixes
    return IdentifierPlan(
        image_keys=parent.image_keys[rows],
        leaves=suffixed.leaves,
        suffixes=suffixed.suffixes,
        learnt=learnt[rows] & learnable,
        # Known ones were taught by the parent, new ones are taught now.
        trained=learnable,
        moved=moved[rows],
    )
