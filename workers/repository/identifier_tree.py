"""The identifier tree: how many images lie below each prefix of a generation, and some of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.identifiers import LEVELS, IdentifierShape
from workers.repository.connection import Connection, fetch_rows


@dataclass(frozen=True, slots=True)
class Subtree:
    """What lies below one prefix."""

    codes: tuple[int, ...]
    images: int
    examples: tuple[str, ...]
    """Ids of its first images."""


@dataclass(frozen=True, slots=True)
class LeafImage:
    """An image of a leaf."""

    suffix: int
    image_id: str


def subtrees(
    conn: Connection,
    generation: int,
    shape: IdentifierShape,
    prefix: Sequence[int],
    examples: int,
) -> list[Subtree]:
    """Return the children of a prefix of fewer than four codes, ascending; empty ones left out.

    The prefix has to lie in the shape. Each comes with at most so many examples.
    """
    level = len(prefix) + 1
    below = shape.leaves // shape.prefixes(level)
    first, end = leaf_range(shape, prefix)
    loads = fetch_rows(
        conn, "prefix_loads", generation=generation, below=below, first=first, end=end
    )
    found: dict[int, list[str]] = {child: [] for child, _ in loads}
    for child, image_id in fetch_rows(
        conn,
        "prefix_examples",
        generation=generation,
        children=list(found),
        below=below,
        amount=examples,
    ):
        found[child].append(image_id)
    count = shape.codes[level - 1]
    children = []
    for child, images in loads:
        children.append(Subtree((*prefix, child % count), images, tuple(found[child])))
    return children


def leaf_images(
    conn: Connection, generation: int, leaf: int, *, after: int, amount: int
) -> list[LeafImage]:
    """Return images whose identifier is in a leaf, with suffixes above one, ascending."""
    rows = fetch_rows(
        conn, "leaf_images", generation=generation, leaf=leaf, after=after, amount=amount
    )
    return [LeafImage(*row) for row in rows]


def images_below(
    conn: Connection, generation: int, shape: IdentifierShape, prefix: Sequence[int]
) -> int:
    """How many images lie below a prefix of the shape."""
    first, end = leaf_range(shape, prefix)
    rows = fetch_rows(
        conn, "prefix_loads", generation=generation, below=shape.leaves, first=first, end=end
    )
    return sum(images for _, images in rows)


def leaf_range(shape: IdentifierShape, prefix: Sequence[int]) -> tuple[int, int]:
    """The leaves [first, end) below a prefix of the shape."""
    first = shape.pack([*prefix, *[0] * (LEVELS - len(prefix))])
    return first, first + shape.leaves // shape.prefixes(len(prefix))
