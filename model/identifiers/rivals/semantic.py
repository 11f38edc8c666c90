"""Semantic identifiers of GRACE: a caption of the image."""

from dataclasses import dataclass

from model.identifiers.rivals.scheme import FittedScheme, Identifier, SchemeImages, single


@dataclass(frozen=True, slots=True)
class Semantic:
    """The first caption that training reads of an image."""

    name: str = "GRACE semantic"
    source: str = "Li et al. 2024"
    deviation: str = ""
    later: str = "the caption that the trained model writes of the picture"
    writes: bool = True
    reranked: bool = False

    def fit(self, images: SchemeImages, seed: int) -> FittedScheme:
        """Take each image's first caption."""
        texts: list[Identifier] = [captions[0] for captions in images.captions]
        return FittedScheme(0, single(texts, images), None)
