"""Why no generation is live, in one sentence with what to do: a training that failed says why."""

from collections.abc import Sequence

from workers.repository.generations import Generation

# What every such sentence begins with; alarms and scripts look for it.
NONE_LIVE = "no generation is live"

_TRAIN = "sigma train --manifest F"


def why_none_is_live(every: Sequence[Generation]) -> str:
    """The sentence for an installation without a live generation; `every` are its generations."""
    tried = [generation for generation in every if generation.config.failure is not None]
    waiting = [generation for generation in every if generation.state in ("shadow", "retired")]
    building = [generation for generation in every if generation.state == "building"]
    if waiting:
        number = waiting[-1].id
        return f"{NONE_LIVE}: make one live with: sigma generations promote {number}"
    if building:
        return (
            f"{NONE_LIVE}: generation {building[-1].id} is being trained, or its training was "
            "interrupted; wait for its end, or go on with: sigma train --resume"
        )
    if tried:
        newest = tried[-1]
        reasons = "; ".join(newest.config.failure or ())
        return (
            f"{NONE_LIVE}: nothing is trained yet, for the training of generation {newest.id} "
            f"failed: {reasons}; then train with: {_TRAIN}"
        )
    return f"{NONE_LIVE}: nothing is trained yet; train a first one with: {_TRAIN}"
