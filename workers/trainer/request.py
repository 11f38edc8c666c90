"""The training request: what a person or a job asks the trainer for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from model.network.base import SHIPPED
from model.network.profiles import Profile
from model.training.stage_gates import Gates
from schemas.errors import UsageError
from schemas.training_record import TrainingMode

# The stage after which a training stops; after `align` the generation is published.
LastStage = Literal["codebook", "memorize", "comprehend", "align"]

# All stages in their order.
STAGES: tuple[str, ...] = get_args(LastStage)

# Whether the base is trained further on the training images before a full training. `auto`: where
# its recall on them is too low.
Adapt = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What to train, from what, and how far. `UsageError` for an unknown stage or `adapt`."""

    profile: Profile | None = None
    """None: that of the parent, or of the training that is resumed."""
    until: str = "align"
    """The last stage to run, one of `STAGES`."""
    resume: bool = False
    """Go on with the newest unfinished generation, in its mode and with its seed."""
    seed: int = 0
    base: Path = SHIPPED
    """Folder of the base weights for a full training."""
    adapt: str = "auto"
    """One of `Adapt`."""
    encoder: str | None = None
    """The encoder of a full training: a hub name or a folder. None: that of the base or profile."""
    captioner: str | None = None
    """What captions images that have none: a hub name or a folder. None: that of the parent."""
    mode: TrainingMode | None = None
    """None: full, or that of the training that is resumed."""
    expect: int | None = None
    """Images that the generation is to hold: a full training takes a shape that is comfortable for
    them. None: that of the profile."""
    recluster: bool = False
    """Give a refresh a new codebook too."""
    gates: Gates = Gates()

    def __post_init__(self) -> None:
        if self.until not in STAGES:
            raise UsageError(f"the last stage must be one of {', '.join(STAGES)}, got {self.until}")
        if self.adapt not in get_args(Adapt):
            allowed = ", ".join(get_args(Adapt))
            raise UsageError(f"adapt must be one of {allowed}, got {self.adapt}")

    @property
    def publishes(self) -> bool:
        """Whether the generation is published after the last stage that is asked for."""
        return self.until == STAGES[-1]
