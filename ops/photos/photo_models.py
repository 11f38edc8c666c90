"""The photo models: what an album's generation is trained with."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PhotoModels:
    """Models of others, each a folder or a name; see docs/encoders.md."""

    encoder: str
    captioner: str | None = None
    """None learns without captions."""
