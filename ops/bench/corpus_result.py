"""The result of a corpus benchmark: figures of each group of images, and what each step took."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from model.retrieval.recall import CUTOFFS
from ops.caption_evaluation import CaptionEvaluation
from ops.markdown_table import table_head, table_row
from schemas.records import JsonObject

# Groups of images as the tables call them, by their key in the document.
GROUPS: Mapping[str, str] = {
    "seen": "trained",
    "unseen": "arrived later",
    "shift_before": "shift without captions, before the refresh",
    "shift_after": "the same, after it",
    "shift_told": "shift with captions, after it",
    "unseen_after": "arrived later, after it",
}

# Below a recall of so much both searches find next to nothing, and a ratio says nothing.
_LEAST_RECALL = 0.001


@dataclass(frozen=True, slots=True)
class GroupRecall:
    """Recall of one group by the keys R@1, R@5, R@10 and R@20, as shares from 0 to 1."""

    queries: int
    gallery: int
    ours: Mapping[str, float]
    dense: Mapping[str, float]
    """Of exact search with the same encoder over the same gallery."""
    candidates: float
    """Images that our search scored for one query, on average."""
    adapted: Mapping[str, float] | None = None
    """Of exact search with the encoder of `tiny`, adapted to the same captions; None where it was
    not measured."""

    @property
    def share_scored(self) -> float:
        """Part of the gallery that our search scored for a query."""
        return self.candidates / self.gallery

    @property
    def ratio(self) -> float | None:
        """Our R@10 to that of exact search; None where that finds nothing."""
        dense = self.dense["R@10"]
        return self.ours["R@10"] / dense if dense > _LEAST_RECALL else None

    def to_json(self) -> JsonObject:
        """One value of `groups` in the document."""
        return asdict(self) | {"share_scored": self.share_scored, "ratio_R@10": self.ratio}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "GroupRecall":
        """Read what `to_json` wrote."""
        names = ("queries", "gallery", "ours", "dense", "candidates")
        adapted = document.get("adapted")
        return cls(**{name: document[name] for name in names}, adapted=adapted)


@dataclass(frozen=True, slots=True)
class StepTime:
    """What one step took, in seconds."""

    wall_s: float
    cpu_s: float
    """Of this process and of those that it started; PostgreSQL is none of them."""


@dataclass(frozen=True, slots=True)
class CorpusBenchResult:
    """One run of the corpus benchmark."""

    corpus: str
    profile: str
    encoder: str
    """`own`: that of the profile."""
    seed: int
    images: Mapping[str, int]
    """How many were trained on, arrived later, and belong to the shift."""
    rejected: Mapping[str, str]
    """Pictures that could not be used, and why, by their files."""
    groups: Mapping[str, GroupRecall]
    """By the keys of `GROUPS`, those that were asked for."""
    captions: CaptionEvaluation | None
    """What the model says of images that arrived later; None without captions."""
    steps: Mapping[str, StepTime]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What tells this run from others, as a file name."""
        encoder = "".join(letter if letter.isalnum() else "-" for letter in self.encoder)
        return f"{self.corpus}-{self.profile}-{encoder}-{self.seed}"

    @property
    def total(self) -> StepTime:
        """All steps together."""
        steps = self.steps.values()
        return StepTime(sum(step.wall_s for step in steps), sum(step.cpu_s for step in steps))

    def to_json(self) -> JsonObject:
        """The document of `sigma bench corpus --json`."""
        return {
            "corpus": self.corpus,
            "profile": self.profile,
            "encoder": self.encoder,
            "seed": self.seed,
            "images": dict(self.images),
            "rejected": dict(self.rejected),
            "groups": {name: group.to_json() for name, group in self.groups.items()},
            "captions": None if self.captions is None else self.captions.to_json(),
            "steps": {name: asdict(step) for name, step in self.steps.items()},
            "total": asdict(self.total),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "CorpusBenchResult":
        """Read what `to_json` wrote."""
        captions = document["captions"]
        groups = document["groups"].items()
        return cls(
            corpus=document["corpus"],
            profile=document["profile"],
            encoder=document["encoder"],
            seed=document["seed"],
            images=document["images"],
            rejected=document["rejected"],
            groups={name: GroupRecall.from_json(group) for name, group in groups},
            captions=None if captions is None else CaptionEvaluation.from_json(captions),
            steps={name: StepTime(**step) for name, step in document["steps"].items()},
            notes=tuple(document["notes"]),
        )

    def to_markdown(self) -> str:
        """The tables, as a section of a page and for people."""
        counts = ", ".join(f"{count:,} {name}" for name, count in self.images.items())
        lines = [f"## {self.corpus}: profile {self.profile}, encoder {self.encoder}", ""]
        lines += [f"Images: {counts}. Seed {self.seed}.", ""]
        cutoffs = [f"R@{cutoff}" for cutoff in CUTOFFS[:3]]
        titles = ["asked for", "queries", *cutoffs, *(f"dense {name}" for name in cutoffs)]
        titles += ["ours / dense R@10", "scored", "of the gallery"]
        is_beside = any(group.adapted for group in self.groups.values())
        if is_beside:
            titles.append("tiny adapted, dense R@10")
        lines += table_head(titles)
        for key, group in self.groups.items():
            lines.append(_group_row(GROUPS[key], group, cutoffs, is_beside))
        if self.captions is not None:
            lines += ["", *self.captions.to_text()]
        lines += ["", *self._time_lines()]
        if self.rejected:
            file, reason = next(iter(self.rejected.items()))
            lines += [
                f"- {len(self.rejected)} pictures cannot be used; the first, {file}: {reason}"
            ]
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines)

    def _time_lines(self) -> list[str]:
        lines = table_head(["step", "wall s", "CPU s"])
        for name, step in (*self.steps.items(), ("all", self.total)):
            lines.append(table_row([name, f"{step.wall_s:.0f}", f"{step.cpu_s:.0f}"]))
        return [*lines, ""]


def _group_row(title: str, group: GroupRecall, cutoffs: Sequence[str], is_beside: bool) -> str:
    cells = [title, f"{group.queries:,}"]
    cells += [f"{100 * group.ours[name]:.1f}" for name in cutoffs]
    cells += [f"{100 * group.dense[name]:.1f}" for name in cutoffs]
    cells.append("–" if group.ratio is None else f"{group.ratio:.2f}")
    cells += [f"{group.candidates:.0f}", f"{100 * group.share_scored:.1f}%"]
    if is_beside:
        cells.append("" if group.adapted is None else f"{100 * group.adapted['R@10']:.1f}")
    return table_row(cells)
