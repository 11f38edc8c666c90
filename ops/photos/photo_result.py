"""The photo result: what one call made of a folder, as JSON and as text for a person."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ops.ingestion import RefusedFile
from schemas.records import JsonObject

# Files that are named for a person; `--json` has all of them.
SHOWN_FILES = 20

# Pictures below which a training has hardly anything to divide into leaves.
FEW_PICTURES = 200

# Times as many pictures as were learnt from, beyond which training again pays.
GROWN = 4


@dataclass(frozen=True, slots=True)
class PhotosResult:
    """What became of a folder, and of the index that holds it."""

    folder: str
    home: str
    url: str
    generation: int
    encoder: str | None
    """None: the small one that comes with the program."""
    trained: int
    """Pictures that this call has trained on."""
    learnt: int
    """Pictures that the live generation was trained on."""
    searchable: int
    """Pictures of the folder that are searchable now."""
    new: int
    """Of those, the ones that were not before."""
    index: int
    """Pictures of the whole index."""
    deleted: int = 0
    rejected: tuple[RefusedFile, ...] = ()
    hidden: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What the person may want to know or decide."""
        notes: list[str] = []
        if self.encoder is None:
            notes.append(
                "this index sees with the small encoder of rendered scenes, which knows no photos; "
                "train it anew: sigma photos FOLDER --retrain"
            )
        elif self.learnt < FEW_PICTURES and self.index < FEW_PICTURES:
            notes.append(
                f"the index learnt from few pictures ({self.learnt:,}); with some hundreds more, "
                "train it again: sigma photos FOLDER --retrain"
            )
        elif self.index > GROWN * self.learnt:
            notes.append(
                f"the index holds {self.index:,} pictures and learnt from {self.learnt:,}; train "
                "it again when there is time: sigma photos FOLDER --retrain"
            )
        if self.deleted:
            notes.append(
                f"deleted from the index before, and left so: {self.deleted:,}; bring a picture "
                "back with: sigma ingest PATH"
            )
        return notes

    def to_json(self) -> JsonObject:
        """The document of `sigma photos --json`."""
        return {
            "folder": self.folder,
            "home": self.home,
            "url": self.url,
            "generation": self.generation,
            "encoder": self.encoder,
            "trained": self.trained,
            "searchable": self.searchable,
            "new": self.new,
            "index": self.index,
            "deleted": self.deleted,
            "rejected": [file.to_json() for file in self.rejected],
            "hidden": self.hidden,
            "notes": self.notes,
            "seconds": dict(self.seconds),
        }

    def to_text(self) -> str:
        """What a person reads at the end."""
        lines = [self._first_line()]
        for file in self.rejected[:SHOWN_FILES]:
            lines.append(f"  {file.path}: {file.reason}")
        if len(self.rejected) > SHOWN_FILES:
            more = len(self.rejected) - SHOWN_FILES
            lines.append(f"  … and {more:,} more; all of them: with --json")
        if self.hidden:
            lines.append(f"{self.hidden:,} hidden files and folders were skipped")
        lines += [f"note: {note}" for note in self.notes]
        lines += [
            "",
            'ask              sigma query "a dog on a beach"',
            "more pictures    sigma photos FOLDER, the same or another one: only new ones are sent",
            "stop, start      sigma down, sigma up",
            f"the index is in  {self.home} (SIGMA_HOME)",
        ]
        return "\n".join(lines)

    def _first_line(self) -> str:
        text = f"{self.folder}: searchable pictures {self.searchable:,}, new {self.new:,}"
        if self.rejected:
            text += f", left out {len(self.rejected):,}"
        if self.index > self.searchable:
            text += f", in the whole index {self.index:,}"
        return text
