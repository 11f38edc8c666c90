"""Sizes of the paper's experiments in miniature, and the scenes that they share.

Images 0 to `trained` less one are trained on, those behind them come later; both are scenes of the
first words. `far` scenes of the later words are the far domain.
"""

from dataclasses import dataclass

from ops.study.streams import StreamConfig
from schemas.errors import UsageError


@dataclass(frozen=True, slots=True)
class PaperSizes:
    """One miniature."""

    trained: int = 240
    later: int = 80
    """Images that come after the training, and as many near and far ones of a cold start."""
    beams: int = 20
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for name in ("trained", "later", "beams"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of a study must be at least 1, got {self}")

    def scenes(self, seed: int) -> StreamConfig:
        """One session of later images behind the trained ones; settling ones are near and far."""
        return StreamConfig(
            "stationary",
            seed,
            first=self.trained,
            settling=self.later,
            sessions=1,
            arrivals=self.later,
            deletions=0,
        )

    @property
    def told(self) -> str:
        """The sizes in a sentence."""
        return self.told_with("`tiny` with codes (8, 8, 4, 4)")

    def told_with(self, profile: str) -> str:
        """The same for another profile."""
        return (
            f"Rendered scenes: {self.trained} trained on with two captions each, {self.later} that"
            f" come later; one held-out caption of each is the query; {self.beams} beams; profile"
            f" {profile}, on the shipped base."
        )


# Identifiers of a few hundred images say little, and a search among them misses none.
WORDED = PaperSizes(trained=1200, later=300)

# For tests: a minute.
REDUCED = PaperSizes(trained=48, later=16, beams=8)
