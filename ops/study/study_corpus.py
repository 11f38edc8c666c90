"""The corpus of a study: a stream, and what frozen models compute of its images once.

Letters in shapes: M images of the stream, D embedding width, V views, T visual tokens, H hidden
width.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from model.network.encoder import Encoder
from model.network.parts import ModelParts
from model.network.teacher import Teacher
from model.training.image_views import visual_tokens
from ops.study.streams import Stream
from schemas.records import ByteArray, FloatArray

# Pairs of image and caption that the teacher scores together.
_TEACHER_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False)
class StudyCorpus:
    """A stream with everything that does not change when a model is retrained.

    Encoder, teacher and vision tower are frozen, like the pretrained ones of the paper, so all
    policies share these arrays.
    """

    stream: Stream
    encoder: Encoder
    embeddings: FloatArray
    """(M, D) of the images, unit length"""
    query_embeddings: FloatArray
    """(M, D) of the held-out captions, unit length"""
    visual: Tensor
    """(V, M, T, H)"""
    soft_labels: list[FloatArray]
    """The teacher's scores of each image's captions."""

    @classmethod
    def prepare(cls, stream: Stream, parts: ModelParts, seed: int) -> "StudyCorpus":
        """Compute everything once; `seed` is that of the shifted views."""
        sigma = parts.sigma
        return cls(
            stream,
            parts.encoder,
            parts.encoder.embed_images(list(stream.pixels)),
            parts.encoder.embed_texts(stream.queries),
            visual_tokens(sigma, stream.pixels, sigma.profile.views, seed),
            _score_captions(parts.teacher, stream),
        )


def _score_captions(teacher: Teacher, stream: Stream) -> list[FloatArray]:
    """Score each image's captions; the pairs of all images are batched together."""
    images: list[ByteArray] = []
    texts: list[str] = []
    for image, captions in zip(stream.pixels, stream.captions, strict=True):
        for text in captions:
            images.append(image)
            texts.append(text)
    scores: list[FloatArray] = []
    for start in range(0, len(texts), _TEACHER_BATCH):
        batch = slice(start, start + _TEACHER_BATCH)
        scores.append(teacher.score(images[batch], texts[batch]))
    # (M,) where each image's scores end among all of them.
    ends = np.cumsum([len(captions) for captions in stream.captions])
    return np.split(np.concatenate(scores), ends[:-1])
