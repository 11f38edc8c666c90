"""The model engine: the query engine of a trained checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.decoding.beam import TextDecodingEngine
from model.decoding.decoder import Decoder
from model.decoding.explain import explain
from model.decoding.export import ensure_export
from model.decoding.vllm import MEMORY_SHARE, VllmDecoder
from model.network.checkpoint import Checkpoint
from model.network.query_head import QueryHeadEncoder
from model.retrieval.guidance import READING_TEXTS, READING_VECTORS, Guidance
from model.training.vector_set import picture_as_text
from schemas.errors import UsageError
from schemas.records import FloatArray, HalfArray
from workers.query.engine import QueryPicture
from workers.query.gallery import Gallery
from workers.query.trie_engine import TrieEngine

# The folder of vLLM's exports, in the folder of files that may be lost.
EXPORTS = "exports"


def export_name(generation: int) -> str:
    """Name the export of a generation."""
    return f"generation-{generation}"


class ModelEngine(TrieEngine):
    """The engine of a trained checkpoint."""

    def __init__(
        self,
        generation: int,
        checkpoint: Checkpoint,
        decoder: Decoder,
        decoding: TextDecodingEngine[Any],
        gallery: Gallery,
    ) -> None:
        """`decoder` is the checkpoint's; `decoding` reads queries, and is the same or vLLM's."""
        shape = checkpoint.sigma.profile.shape
        head = checkpoint.sigma.query_head
        encoder = checkpoint.encoder
        if head is not None:
            encoder = QueryHeadEncoder(checkpoint.sigma, head)
        guidance: Guidance | None = READING_TEXTS
        if checkpoint.sigma.projector is not None:
            guidance = READING_VECTORS
        elif head is not None:
            # The vector of a query is known no sooner than its beams.
            guidance = None
        super().__init__(
            generation,
            shape,
            encoder,
            decoding,
            gallery,
            decoder.device,
            guidance,
            checkpoint.querybank,
            checkpoint.sketch,
        )
        self.checkpoint = checkpoint
        self.decoder = decoder

    @classmethod
    def open(
        cls,
        generation: int,
        checkpoint: Checkpoint,
        folder: Path,
        *,
        engine: str = "torch",
        memory_share: float = MEMORY_SHARE,
    ) -> "ModelEngine":
        """Open an empty engine. `folder` is for files that may be lost.

        `engine` decodes queries, "torch" or "vllm"; vLLM reads an export of the checkpoint, which
        is made once, and takes `memory_share` of a GPU.
        """
        # vLLM shares the decoder too: it scores with it while vLLM is not running.
        decoder = Decoder(checkpoint.sigma)
        decoding: TextDecodingEngine[Any] = decoder
        if engine == "vllm":
            export = ensure_export(decoder.sigma, folder / EXPORTS, export_name(generation))
            decoding = VllmDecoder.start(decoder, export, memory_share)
        return cls(generation, checkpoint, decoder, decoding, Gallery.open(folder))

    @property
    def eager_searches(self) -> Mapping[str, int]:
        """See `QueryEngine`; those of pictures among them, and of vLLM's stand-in."""
        graphs = self.decoder.graphs
        return {} if graphs is None else dict(graphs.eager)

    def explain(self, codes: Sequence[int]) -> str | None:
        """See `QueryEngine`. Whether the model has learnt any words is for the caller to know."""
        return explain(self.decoder, codes)

    def prepare_pictures(self) -> None:
        """See `QueryEngine`: the vision tower of a model that reads pictures themselves."""
        if not self._reads_vectors_of_pictures:
            _ = self.decoder.sigma.backbone.model.visual

    @property
    def _reads_vectors_of_pictures(self) -> bool:
        projector = self.decoder.sigma.projector
        return projector is not None and projector.reading.pictures

    def _read_pictures(
        self, pictures: Sequence[QueryPicture], vectors: FloatArray
    ) -> tuple[TextDecodingEngine[Any], Any]:
        """A model that reads vectors reads the picture's in a text's place.

        Any other reads the picture itself, as it does when an image arrives (paper, equation 3).
        vLLM has no such prompts, so the decoder's own engine reads them.
        """
        sigma = self.decoder.sigma
        projector = sigma.projector
        if projector is not None and projector.reading.pictures:
            asked = projector.as_texts(projector.placed_images(vectors))
            return self.decoder, self.decoder.read_texts([""] * len(pictures), asked)
        pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
        if len(pixels) < len(pictures):
            raise UsageError("the store has lost the picture of the image; ingest it again")
        patches = sigma.preprocessor(pixels).to(self.decoder.device)
        return self.decoder, self.decoder.read_images(patches)

    def _as_text(self, picture: HalfArray, image_key: int) -> FloatArray:
        """The vector (D,) of a picture with the noise that stood for texts in training."""
        projector = self.decoder.sigma.projector
        if projector is None:
            return super()._as_text(picture, image_key)
        return picture_as_text(projector, picture.astype(np.float32), image_key)
