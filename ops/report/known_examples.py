"""Known examples: some of the queries that a probe asks, for whoever wants to ask them too."""

from dataclasses import dataclass

from ops.jobs.known_items import sample_known_items
from schemas.records import JsonObject
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.stored_images import images_by_key

# Queries that a report names.
EXAMPLES = 8


@dataclass(frozen=True, slots=True)
class KnownExample:
    """A caption of an image, which should be found by it."""

    query: str
    image_id: str
    cohort: str

    def to_dict(self) -> JsonObject:
        """Its part of the JSON document."""
        return {"query": self.query, "image_id": self.image_id, "cohort": self.cohort}


def known_examples(conn: Connection, live: Generation) -> tuple[KnownExample, ...]:
    """Draw queries of the live generation as a probe does, fewer where it has few captions."""
    items = sample_known_items(conn, live.id, EXAMPLES)
    images = images_by_key(conn, [item.image_key for item in items])
    examples = []
    for item in items:
        image = images.get(item.image_key)
        # One that was deleted meanwhile is not there.
        if image is not None and item.text:
            examples.append(KnownExample(item.text, image.image_id, item.cohort))
    return tuple(examples)
