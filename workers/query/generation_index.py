"""The generation index: all that a query worker keeps of a generation's images in memory.

Trie, ranking embeddings, prefix means and metadata, which change together. For one thread.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from model.network.sketch import Sketch
from model.retrieval.hubness import HubnessBySlot
from model.retrieval.metadata_columns import MetadataColumns
from model.retrieval.prefix_means import PrefixMeans
from model.retrieval.sketches import SketchesBySlot
from model.retrieval.trie import Trie
from schemas.identifiers import IdentifierShape
from schemas.metadata import Metadata
from schemas.records import IntArray, NamedArrays
from workers.query.gallery import Gallery
from workers.repository.follower import Changes, EmbeddingRows
from workers.repository.posting_rows import PostingRows


class GenerationIndex:
    """The images of one generation. Starts empty; it closes the gallery."""

    def __init__(
        self,
        shape: IdentifierShape,
        width: int,
        gallery: Gallery,
        device: torch.device | None = None,
        guided: bool = False,
        hubness: HubnessBySlot | None = None,
        sketch: Sketch | None = None,
    ) -> None:
        """`width` is that of embeddings. `guided`: whether prefix means are kept.

        `hubness` is told when a slot gets another image. `sketch` makes those of images; None for
        none.

        `device` is where tables of the trie and prefix means are asked for; None is the CPU.
        """
        self.shape = shape
        self.width = width
        self.gallery = gallery
        self.guided = guided
        self.hubness = hubness
        self.sketches = None if sketch is None else SketchesBySlot(sketch)
        self._device = device
        self.clear()

    def clear(self) -> None:
        """Forget all images."""
        if self.hubness is not None:
            self.hubness.forget(np.arange(self.gallery.size))
        self.gallery.clear()
        if self.sketches is not None:
            self.sketches.clear()
        self.trie = Trie(self.shape, self._device)
        self.means = PrefixMeans(self.shape, self.width, self._device) if self.guided else None
        self.metadata = MetadataColumns()

    def empty_copy(self, folder: Path) -> "GenerationIndex":
        """An empty index of the same kind, on the CPU, with a file in `folder`."""
        sketch = None if self.sketches is None else self.sketches.sketch
        gallery = Gallery.open(folder)
        return GenerationIndex(self.shape, self.width, gallery, None, self.guided, None, sketch)

    def add_embeddings(self, rows: EmbeddingRows) -> None:
        """Take a chunk of ranking embeddings, before the postings that need them."""
        slots = self.gallery.add(rows.image_keys, rows.embeddings)
        if self.sketches is not None:
            stored = slots >= 0
            self.sketches.put(slots[stored], rows.embeddings[stored])

    def apply(self, changes: Changes) -> IntArray:
        """Bring everything up to date; returns the keys that became searchable."""
        # An image deleted in the same batch has no embedding, or one that must not be found.
        embeddings = changes.embeddings.without(changes.deleted)
        self._delete(changes.deleted)
        if len(embeddings):
            self.add_embeddings(embeddings)
        self._insert(changes.postings)
        self._insert_metadata(changes.metadata)
        return embeddings.image_keys

    def to_arrays(self) -> NamedArrays:
        """All that it holds but for metadata, for `restore`."""
        parts = {"trie": self.trie.to_arrays(), "gallery": self.gallery.to_arrays()}
        if self.means is not None:
            parts["means"] = self.means.to_arrays()
        if self.sketches is not None:
            parts["sketches"] = self.sketches.to_arrays(self.gallery.size)
        arrays: NamedArrays = {}
        for part, own in parts.items():
            for name, values in own.items():
                arrays[f"{part}.{name}"] = values
        return arrays

    def restore(self, arrays: NamedArrays, images: int) -> None:
        """Take over what another index of this kind held, which had so many images."""
        parts: dict[str, NamedArrays] = {}
        for name, values in arrays.items():
            part, _, own = name.partition(".")
            parts.setdefault(part, {})[own] = values
        self.trie.restore(parts["trie"], images)
        self.gallery.restore(parts["gallery"])
        if self.means is not None:
            self.means.restore(parts["means"])
        if self.sketches is not None:
            self.sketches.restore(parts["sketches"])

    def close(self) -> None:
        """Free the embeddings' file."""
        self.gallery.close()

    def _insert(self, postings: PostingRows) -> None:
        slots = self.gallery.slots(postings.image_keys)
        # One without a slot was deleted in the same batch. All postings of an image are written at
        # once, so one that has some has them all: read twice, say after a restore, they count once.
        kept = slots >= 0
        kept[kept] = ~self.trie.has(slots[kept])
        if not kept.any():
            # A gallery that never had an image has no width either.
            return
        self.trie.insert(
            postings.leaves[kept], slots[kept], postings.weights[kept], postings.suffixes[kept]
        )
        if self.means is not None:
            vectors = self.gallery.embeddings[slots[kept]].astype(np.float32)
            self.means.add(postings.leaves[kept], vectors)

    def _delete(self, keys: IntArray) -> None:
        slots = self.gallery.slots(keys)
        slots = slots[slots >= 0]
        if not len(slots):
            return
        if self.means is not None:
            leaves, posted_slots = self.trie.posted(slots.tolist())
            vectors = self.gallery.embeddings[posted_slots].astype(np.float32)
            self.means.add(leaves, vectors, sign=-1)
        self.trie.delete(slots.tolist())
        if self.hubness is not None:
            self.hubness.forget(slots)
        self.metadata.delete(slots)
        self.gallery.remove(keys)

    def _insert_metadata(self, metadata: Mapping[int, Metadata]) -> None:
        """Take the metadata of images that have a slot; one without was deleted meanwhile."""
        slots = self.gallery.slots(np.fromiter(metadata, np.int64, len(metadata)))
        known: dict[int, Metadata] = {}
        for slot, document in zip(slots.tolist(), metadata.values(), strict=True):
            if slot >= 0:
                known[slot] = document
        self.metadata.insert(known)
