"""Vector reading: the decoder reads an encoder's vector in the place of an image or beside a text.

The vector of a text and that of a picture lie in one space, so a model that has learnt identifiers
from pictures' vectors can be asked with those of texts: no caption is needed, and words that no
caption had are no stranger to the decoder than others.

Letters in shapes: B vectors, D width of the encoder, S tokens of a vector, H hidden width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.inputs import VisualTokens, sent
from schemas.errors import RefuseToStartError
from schemas.records import FloatArray

# Tokens that a vector becomes.
TOKENS = 4

# Widths of the hidden layer, as a multiple of the hidden width of the backbone.
_EXPANSION = 2

# Shorter than this, what is left of a vector without its mean has no direction.
_LEAST_LENGTH = 1e-6

# Noise of this length leaves a direction of which a hundredth is the picture's.
MAX_NOISE = 10.0


@dataclass(frozen=True, slots=True)
class VectorReading:
    """How a generation reads vectors; stored with its checkpoint."""

    width: int
    """D."""
    noise: float
    """Length of the noise that pictures' vectors of length 1 were learnt with, as if they were
    vectors of texts."""
    tokens: int = TOKENS
    """S."""
    pictures: bool = True
    """Whether pictures are read by their vectors too, and not by the vision tower."""
    with_text: bool = False
    """Whether the tokens of a query follow its vector: where training had captions to learn words
    from."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.tokens < 1 or not 0 <= self.noise <= MAX_NOISE:
            raise RefuseToStartError(
                f"vector reading must have a width and tokens of at least 1 and noise between 0 "
                f"and {MAX_NOISE:g}, got {self}; restore the checkpoint or train again"
            )


class VectorProjector(nn.Module):
    """Turns vectors of an encoder into tokens that stand in an image's place in a prompt.

    Texts and pictures of one encoder lie apart, each kind around a mean of its own (Liang et al.
    2022, "Mind the gap"). Each is read without its mean.
    """

    image_mean: Tensor
    text_mean: Tensor

    def __init__(self, reading: VectorReading, hidden: int, merge: int) -> None:
        """`hidden` is H. `merge`: patches on each side of a visual token of the backbone."""
        super().__init__()
        self.reading = reading
        self.hidden = hidden
        self.merge = merge
        self.register_buffer("image_mean", torch.zeros(reading.width))
        self.register_buffer("text_mean", torch.zeros(reading.width))
        inner = _EXPANSION * hidden
        self.mlp = nn.Sequential(
            nn.LayerNorm(reading.width),
            nn.Linear(reading.width, inner),
            nn.GELU(),
            nn.Linear(inner, reading.tokens * hidden),
            nn.Unflatten(-1, (reading.tokens, hidden)),
            nn.LayerNorm(hidden),
        )

    def place(self, images: FloatArray, texts: FloatArray) -> None:
        """Take the means from (N, D) vectors of pictures and (B, D) of texts, in place."""
        with torch.no_grad():
            self.image_mean.copy_(torch.from_numpy(images.mean(0)))
            self.text_mean.copy_(torch.from_numpy(texts.mean(0)))

    def placed_images(self, vectors: FloatArray) -> Tensor:
        """(B, D) unit vectors of pictures without their mean."""
        return self._placed(vectors, self.image_mean)

    def placed_texts(self, vectors: FloatArray) -> Tensor:
        """(B, D) unit vectors of texts without their mean."""
        return self._placed(vectors, self.text_mean)

    def as_texts(self, placed: Tensor) -> FloatArray:
        """(B, D) unit vectors that are read as if texts had the placed vectors."""
        moved = F.normalize(placed + self.text_mean, dim=-1)
        vectors: FloatArray = moved.cpu().numpy()
        return vectors

    def forward(self, placed: Tensor) -> VisualTokens:
        """(B, D) placed vectors as visual tokens: a row of S tokens each."""
        states: Tensor = self.mlp(placed)
        grid = torch.tensor([[1, self.merge, self.merge * self.reading.tokens]])
        return VisualTokens(states.reshape(-1, self.hidden), grid.repeat(len(placed), 1))

    def _placed(self, vectors: FloatArray, mean: Tensor) -> Tensor:
        tensor = sent(torch.from_numpy(vectors).float(), mean.device)
        return F.normalize(tensor - mean, dim=-1, eps=_LEAST_LENGTH)
