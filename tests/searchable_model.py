"""What must be searchable, in plain Python: the slow rule that the index is compared with."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

Key = tuple[str, int]


@dataclass
class DeletionsRead:
    """The deletions of one image that were read."""

    version: int = 0
    """The highest version that one named."""
    moment: datetime | None = None
    """When the newest one that named none was published."""


@dataclass
class SearchableModel:
    """Grows with the events that intake and index worker have read, in the order of reading."""

    deletions: dict[str, DeletionsRead] = field(default_factory=lambda: defaultdict(DeletionsRead))
    publications: dict[str, set[tuple[int, datetime]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    """Versions, with the time of each publication that is known: late, refused or indexed ones."""
    contents: dict[Key, str] = field(default_factory=dict)
    """The bytes that came first of each version that was indexed."""

    def delete(self, image_id: str, version: int | None, moment: datetime) -> None:
        """A deletion was read."""
        known = self.deletions[image_id]
        if version is not None:
            known.version = max(known.version, version)
            return
        known.version = max(known.version, 1)
        known.moment = max(known.moment or moment, moment)

    def publish(self, image_id: str, version: int, moment: datetime) -> None:
        """It is known when a version was published."""
        self.publications[image_id].add((version, moment))

    def index(self, image_id: str, version: int, moment: datetime, content: str) -> None:
        """An accepted event was read."""
        self.publish(image_id, version, moment)
        self.contents.setdefault((image_id, version), content)

    def gone(self, image_id: str) -> int:
        """The version up to which an image is deleted."""
        deletions = self.deletions[image_id]
        gone = deletions.version
        for version, moment in self.publications[image_id]:
            if deletions.moment is not None and moment <= deletions.moment:
                gone = max(gone, version)
        return gone

    def is_late(self, image_id: str, version: int, moment: datetime) -> bool:
        """Whether an arrival is of a deleted version, so that its bytes are not even read."""
        deleted_at = self.deletions[image_id].moment
        before = deleted_at is not None and moment <= deleted_at
        return before or version <= self.gone(image_id)

    def searchable(self) -> dict[str, tuple[int, str]]:
        """Version and bytes of every image that is to be found."""
        newest: dict[str, tuple[int, str]] = {}
        for (image_id, version), content in self.contents.items():
            if version > newest.get(image_id, (0, ""))[0]:
                newest[image_id] = version, content
        return {
            image_id: found for image_id, found in newest.items() if found[0] > self.gone(image_id)
        }
