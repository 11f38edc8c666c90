"""Re-clustering a generation: a new codebook fitted to its images, and their leaves in it."""

from dataclasses import dataclass

import numpy as np

from model.identifiers.codebook import Codebook
from model.identifiers.recluster import (
    ReclusterConfig,
    keep_codes,
    recluster_within_budget,
)
from model.identifiers.recluster_report import recluster_report
from model.progress import Progress
from schemas.records import IntArray
from schemas.training_record import ReclusterRecord
from workers.repository.connection import Connection
from workers.repository.training_data import IndexedImages, embeddings_of, sampled
from workers.trainer.identifier_plan import leaves_in

# Embeddings read and encoded at a time: some megabytes.
_PAGE = 4096

# Images that the new codebook is fitted to, at most.
_SAMPLE = 20_000


@dataclass(frozen=True, slots=True)
class Reclustering:
    """A new codebook, (M,) leaves of a generation's images in it, and what the move costs."""

    codebook: Codebook
    leaves: IntArray
    record: ReclusterRecord


def recluster_generation(
    conn: Connection,
    generation: int,
    indexed: IndexedImages,
    old: Codebook,
    seed: int,
    progress: Progress,
) -> Reclustering:
    """Fit a codebook to a sample of a generation's images and find the leaf of each image in it.

    An image moves when the codes that the old codebook computes for it do not last. Where the model
    chose other codes, that was no error of the codebook: the image stays where the model put it.
    """
    rows = sampled(np.arange(len(indexed.image_keys)), _SAMPLE, seed)
    stored = embeddings_of(conn, generation, indexed.image_keys[rows])
    sample = stored.embeddings[stored.present].astype(np.float32)
    leaves = indexed.leaves.copy()
    with progress("recluster", len(leaves)) as bar:
        new, config = recluster_within_budget(old, sample, ReclusterConfig(seed=seed))
        for begin in range(0, len(leaves), _PAGE):
            page = embeddings_of(conn, generation, indexed.image_keys[begin : begin + _PAGE])
            embeddings = page.embeddings[page.present].astype(np.float32)
            own = old.encode(embeddings)
            kept = keep_codes(own, embeddings, new, config)
            moving = (kept != own).any(axis=1)
            present_rows = begin + np.flatnonzero(page.present)
            leaves[present_rows[moving]] = leaves_in(new, kept[moving])
            bar.update(len(page.present))
    own = old.encode(sample)
    kept = keep_codes(own, sample, new, config)
    report = recluster_report(own, kept, sample, old, new, None)
    moved = int((leaves != indexed.leaves).sum())
    return Reclustering(new, leaves, ReclusterRecord(len(leaves), moved, report.to_dict()))
