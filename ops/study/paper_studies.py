"""Experiments of the paper: which one `sigma study` runs, and at which size."""

from dataclasses import replace
from pathlib import Path

from model.progress import Progress
from ops.study.ablation import ablation
from ops.study.cases import cases
from ops.study.coldstart import coldstart
from ops.study.explanations import explanations
from ops.study.paper_sizes import REDUCED, WORDED, PaperSizes
from ops.study.retrieval_table import retrieval_table
from ops.study.rivals import rivals
from ops.study.speed import REDUCED_SPEED, SpeedSizes, latency, throughput
from ops.study.study_table import StudyTable


def paper_study(
    name: str, seeds: int, reduced: bool, models: Path, progress: Progress
) -> StudyTable:
    """Run the experiment of that name. `models` keeps what can be made again."""
    sizes = REDUCED if reduced else replace(PaperSizes(), seeds=tuple(range(seeds)))
    worded = REDUCED if reduced else replace(WORDED, seeds=sizes.seeds)
    match name:
        case "ablation":
            return ablation(sizes, models, progress)
        case "cases":
            return cases(worded, models, progress)
        case "coldstart":
            return coldstart(sizes, progress)
        case "explain":
            return explanations(worded, models, progress)
        case "latency":
            return latency(_speed(seeds, reduced), progress)
        case "main":
            return retrieval_table(sizes, progress)
        case "rivals":
            return rivals(sizes, progress)
        case "throughput":
            return throughput(_speed(seeds, reduced), progress)
    # The command line has its own list of names: a new study belongs in both places.
    raise AssertionError(f"sigma study accepts no {name!r}")


def _speed(seeds: int, reduced: bool) -> SpeedSizes:
    return REDUCED_SPEED if reduced else replace(SpeedSizes(), seeds=tuple(range(seeds)))
