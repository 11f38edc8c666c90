"""The checkpoint's description: what `checkpoint.json` says of model and training."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model.network.profile_document import profile_document, recorded_profile
from model.network.profiles import Profile, TinySize
from model.network.query_head import QuerySpace
from model.network.vector_reading import VectorReading
from schemas.errors import RefuseToStartError, UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import JsonObject
from schemas.training_record import TrainingRecord

# Describes the model and its training; put in place last, so a folder with it is whole.
ABOUT = "checkpoint.json"

# Version of the folder's layout. A checkpoint of another version is refused.
FORMAT = 1

# Version of a folder with a pretrained encoder in it, which older versions could not read.
_FORMAT_WITH_ENCODER = 2

# Version of a folder whose model reads the encoder's vectors, likewise.
_FORMAT_WITH_VECTORS = 3

# Version of a folder whose model has a query head, which older versions would not train or ask.
_FORMAT_WITH_QUERY_HEAD = 4

# Keys of `checkpoint.json` that describe the model; the others belong to the training record.
_MODEL_KEYS = (
    "format",
    "shape",
    "codebook",
    "encoder",
    "size",
    "vectors",
    "query_space",
    "querybank",
    "sketched",
)


@dataclass(frozen=True, slots=True)
class CheckpointDescription:
    """What `checkpoint.json` says.

    `codebook` is a version. An encoder of a base has a `towers_width`, one that is kept in the
    folder a `kept_source`, which tells where it came from, and one that runs code of its own a
    `jina_source`, a hub name or folder.
    """

    profile: Profile
    codebook: str
    towers_width: int | None
    jina_source: str | None
    kept_source: str | None
    record: TrainingRecord
    vectors: VectorReading | None = None
    query_space: QuerySpace | None = None
    querybank: dict[str, float] | None = None
    """Its numbers; the vectors are in a file."""
    sketched: bool = False
    """Whether there is a sketch, in a file."""

    @property
    def format(self) -> int:
        """The oldest layout that has all that is in the folder."""
        if self.query_space is not None:
            return _FORMAT_WITH_QUERY_HEAD
        if self.vectors is not None:
            return _FORMAT_WITH_VECTORS
        return FORMAT if self.kept_source is None else _FORMAT_WITH_ENCODER

    def to_json(self) -> JsonObject:
        """The stored form."""
        encoder: dict[str, object] = {"kind": "jina", "source": self.jina_source}
        if self.kept_source is not None:
            encoder = {"kind": "kept", "source": self.kept_source}
        elif self.towers_width is not None:
            encoder = {"kind": "small", "width": self.towers_width}
        vectors = {} if self.vectors is None else {"vectors": asdict(self.vectors)}
        space = {} if self.query_space is None else {"query_space": asdict(self.query_space)}
        bank = {} if self.querybank is None else {"querybank": self.querybank}
        return (
            self.record.to_json()
            | vectors
            | space
            | bank
            | ({"sketched": True} if self.sketched else {})
            | {
                "format": self.format,
                "profile": self.profile.name,
                "profile_numbers": profile_document(self.profile),
                "shape": asdict(self.profile.shape),
                "codebook": self.codebook,
                "encoder": encoder,
                "size": None if self.profile.tiny is None else asdict(self.profile.tiny),
            }
        )

    @classmethod
    def from_json(cls, document: JsonObject) -> "CheckpointDescription":
        """Read what `to_json` of this version or of an earlier one wrote."""
        shape = document["shape"]
        encoder = document["encoder"]
        source = encoder.get("source")
        size = document["size"]
        vectors = document.get("vectors")
        space = document.get("query_space")
        record = {name: value for name, value in document.items() if name not in _MODEL_KEYS}
        # Versions before this one recorded only shape and sizes, which are those of the weights.
        own_profile = replace(
            recorded_profile(document["profile"], document.get("profile_numbers")),
            shape=IdentifierShape(codes=tuple(shape["codes"]), suffixes=int(shape["suffixes"])),
            tiny=None if size is None else TinySize(**size),
        )
        return cls(
            profile=own_profile,
            codebook=document["codebook"],
            towers_width=int(encoder["width"]) if encoder["kind"] == "small" else None,
            jina_source=source if encoder["kind"] == "jina" else None,
            kept_source=source if encoder["kind"] == "kept" else None,
            record=TrainingRecord.from_json(record),
            vectors=None if vectors is None else VectorReading(**vectors),
            query_space=None if space is None else QuerySpace(**space),
            querybank=document.get("querybank"),
            sketched=bool(document.get("sketched", False)),
        )


def read_description(folder: Path) -> CheckpointDescription:
    """Read `checkpoint.json`; `RefuseToStartError` when it is missing or of another format."""
    try:
        document = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefuseToStartError(
            f"{folder} holds no readable checkpoint ({error}); restore it or train again"
        ) from error
    formats = (FORMAT, _FORMAT_WITH_ENCODER, _FORMAT_WITH_VECTORS, _FORMAT_WITH_QUERY_HEAD)
    if document.get("format") not in formats:
        raise RefuseToStartError(
            f"checkpoint {folder} must have a format from {FORMAT} to {formats[-1]}, got "
            f"{document.get('format')}; train again with this version"
        )
    try:
        return CheckpointDescription.from_json(document)
    except UsageError as error:  # of a profile that this version does not have, or cannot
        raise RefuseToStartError(
            f"checkpoint {folder} has a profile that this version cannot read ({error}); train "
            "again with this version"
        ) from error
