"""The training record: how a model was trained. Stored with its checkpoint and its generation."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from schemas.records import JsonObject
from schemas.relevance import RelevanceCalibration

# full: base weights and a new codebook. refresh: the live generation's weights, trained on new
# images and some known ones. recluster: the live generation's weights unchanged, a new codebook,
# identifiers moved where needed.
TrainingMode = Literal["full", "refresh", "recluster"]

# The first of `TrainingRecord.stages`: codebook and identifier plan are on disk.
CODEBOOK = "codebook"

# Folder of the files of a pretrained encoder, in the folder of a checkpoint.
KEPT_ENCODER = "encoder"

_TRAINING_LOSS = "training_loss"


# What `TrainingRecord.reads` says of a generation that reads the encoder's vectors.
VECTORS = "vectors"


@dataclass(frozen=True, slots=True)
class StageEvaluation:
    """What a stage was measured at: its figures by name, and the loss of its last batch."""

    figures: Mapping[str, float]
    training_loss: float | None = None

    def to_json(self) -> dict[str, float]:
        """The stored form: the loss is one more figure."""
        document = dict(self.figures)
        if self.training_loss is not None:
            document[_TRAINING_LOSS] = self.training_loss
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, float]) -> "StageEvaluation":
        """Read what `to_json` wrote."""
        figures = dict(document)
        training_loss = figures.pop(_TRAINING_LOSS, None)
        return cls(figures, training_loss)


@dataclass(frozen=True, slots=True)
class ReclusterRecord:
    """A re-clustering: how many of `images` got another identifier, and the codebook's report."""

    images: int
    moved: int
    report: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The stored form: one flat object."""
        return {**self.report, "images": self.images, "moved": self.moved}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ReclusterRecord":
        """Read what `to_json` wrote."""
        report = dict(document)
        images = report.pop("images", 0)
        moved = report.pop("moved", 0)
        return cls(images, moved, report)


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a training was asked for, and what it has done so far.

    Versions before this one left keys out; their fields are None. `other` are keys that this
    version does not know: they are written back, so that a resumed training loses nothing.
    """

    mode: TrainingMode | None = None
    parent: int | None = None
    """The generation whose weights it began with."""
    profile: str | None = None
    profile_numbers: JsonObject | None = None
    """All fields of the profile, for it may come from a file, and built-in ones change."""
    seed: int | None = None
    encoder_source: str | None = None
    """The encoder that was asked for: a folder, or a hub name with its revision."""
    captioner: str | None = None
    """What gave captions to images that had none: a folder, or a hub name with its revision."""
    encoder_px: int | None = None
    """Pixels of a side of the square that the pretrained encoder reads, or the model, whichever is
    more."""
    reads: str | None = None
    """How queries are read: `VECTORS`, or None for their tokens."""
    corpus: str | None = None
    """Where the training images come from: `manifest` or `store`."""
    reclustered: bool | None = None
    """Whether the codebook is a new one fitted beside the parent's."""
    manifest: str | None = None
    """Fingerprint of the manifest, so that a resumed training gets the same images and captions."""
    stages: tuple[str, ...] = ()
    """What is finished and stored, in order; `CODEBOOK` comes first."""
    images: int | None = None
    """How many images are trained on, or all images where only the codebook changes."""
    base_recall: float | None = None
    """Recall of the base on the training images before it was adapted to them."""
    evaluations: Mapping[str, StageEvaluation] = field(default_factory=dict)
    recluster: ReclusterRecord | None = None
    relevance: RelevanceCalibration | None = None
    """What its cosines say; None of versions that had none, and without captions."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of each step."""
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    """CPU time of each step, of all processes of a training stage."""
    other: Mapping[str, object] = field(default_factory=dict)

    @property
    def mode_or_full(self) -> TrainingMode:
        """The mode; versions that did not record it trained in full only."""
        return self.mode or "full"

    def with_stage(self, name: str) -> "TrainingRecord":
        """The record after a further stage was finished."""
        return replace(self, stages=(*self.stages, name))

    def with_evaluation(self, stage: str, evaluation: StageEvaluation) -> "TrainingRecord":
        """The record with what a stage was measured at."""
        return replace(self, evaluations={**self.evaluations, stage: evaluation})

    def with_time(self, step: str, seconds: float, cpu_seconds: float) -> "TrainingRecord":
        """The record with time added to what a step has taken before, rounded to 10 ms."""
        wall = round(self.seconds.get(step, 0.0) + seconds, 2)
        cpu = round(self.cpu_seconds.get(step, 0.0) + cpu_seconds, 2)
        return replace(
            self,
            seconds={**self.seconds, step: wall},
            cpu_seconds={**self.cpu_seconds, step: cpu},
        )

    def to_json(self) -> JsonObject:
        """The stored form. What is not known is left out; `parent` is null for a full training."""
        document: JsonObject = dict(self.other)
        document["stages"] = list(self.stages)
        if self.mode is not None:
            document["mode"] = self.mode
            document["parent"] = None
        for name in _PLAIN_FIELDS:
            value = getattr(self, name)
            if value is not None:
                document[name] = value
        if self.evaluations:
            evaluations = {name: found.to_json() for name, found in self.evaluations.items()}
            document["evaluations"] = evaluations
        if self.recluster is not None:
            document["recluster"] = self.recluster.to_json()
        if self.relevance is not None:
            document["relevance"] = self.relevance.to_json()
        if self.seconds:
            document["seconds"] = dict(self.seconds)
        if self.cpu_seconds:
            document["cpu_seconds"] = dict(self.cpu_seconds)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "TrainingRecord":
        """Read what `to_json` of this version or of an earlier one wrote."""
        rest = dict(document)
        mode = rest.pop("mode", None)
        plain = {name: rest.pop(name, None) for name in _PLAIN_FIELDS}
        stages = rest.pop("stages", None) or ()
        evaluations = rest.pop("evaluations", None) or {}
        recluster = rest.pop("recluster", None)
        return cls(
            **plain,
            mode=mode if mode in get_args(TrainingMode) else None,
            stages=tuple(stages),
            evaluations={
                name: StageEvaluation.from_json(found) for name, found in evaluations.items()
            },
            relevance=RelevanceCalibration.from_json(rest.pop("relevance", None)),
            recluster=None if recluster is None else ReclusterRecord.from_json(recluster),
            seconds=rest.pop("seconds", None) or {},
            cpu_seconds=rest.pop("cpu_seconds", None) or {},
            other=rest,
        )


# Fields of `TrainingRecord` that are stored under their own names and unchanged.
_PLAIN_FIELDS = (
    "parent",
    "reads",
    "profile",
    "profile_numbers",
    "seed",
    "encoder_source",
    "encoder_px",
    "captioner",
    "corpus",
    "reclustered",
    "manifest",
    "images",
    "base_recall",
)
