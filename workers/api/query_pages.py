"""Query pages: the images of a cursor, described as the database has them now."""

from dataclasses import dataclass

from stream.images.store import ImageStore
from workers.api.query_cursors import QueryCursor
from workers.query.descriptions import shown_image
from workers.query.searcher import (
    AnsweredQuery,
    FoundImage,
    found_images,
    found_relevances,
    hits_of,
)
from workers.repository import generations
from workers.repository.connection import Connection
from workers.repository.postings import identifiers_of
from workers.repository.stored_images import images_by_key

# Images that are looked up at a time: a page, and some in place of those that were deleted.
_LOOKED_UP = 120


@dataclass(frozen=True, slots=True)
class QueryPage:
    """A further page of an answer, and where the next one begins."""

    answer: AnsweredQuery
    cursor: QueryCursor | None


def next_page(
    conn: Connection, cursor: QueryCursor, count: int, store: ImageStore
) -> QueryPage | None:
    """The next `count` images that are still there; None when their generation was dropped."""
    known = {generation.id: generation for generation in generations.generations(conn)}
    generation = known.get(cursor.generation)
    if generation is None or generation.dropped:
        return None
    found: list[FoundImage] = []
    rest = cursor.rest
    passed = 0
    while len(found) < count and passed < len(rest.image_keys):
        part = rest.behind(passed).first(_LOOKED_UP)
        keys = part.image_keys.tolist()
        stored = {key: shown_image(image) for key, image in images_by_key(conn, keys).items()}
        identifiers = identifiers_of(conn, generation.id, generation.shape, keys)
        wanted = count - len(found)
        more = found_images(part, stored, identifiers, wanted)
        found += more
        passed += more[-1].place + 1 if len(more) == wanted else len(keys)
    answer = AnsweredQuery(
        "",
        generation.id,
        hits_of(found, store.link, cursor.next_rank),
        cursor.candidates,
        tuple(image.stored.captions for image in found),
        tuple(image.cosine for image in found),
        found_relevances(found, generation.config.training.relevance if cursor.is_text else None),
    )
    return QueryPage(answer, cursor.after(len(found), passed))
