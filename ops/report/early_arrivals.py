"""Early arrivals: what a drift report says before the first check, from the first arrival on."""

from collections import Counter
from dataclasses import dataclass

from schemas.records import JsonObject
from workers.repository import monitoring
from workers.repository.connection import Connection
from workers.repository.generations import Generation
from workers.repository.identifier_tree import subtrees


@dataclass(frozen=True, slots=True)
class FirstCode:
    """How many images have one first code of an identifier."""

    code: int
    arrivals: int
    images: int
    """Of the whole generation, arrivals included."""


@dataclass(frozen=True, slots=True)
class EarlyArrivals:
    """Images that came since a generation is live, as far as its first check waits for them."""

    generation: int
    arrived: int
    wanted: int
    """So many make the reference, or the window that is compared with it."""
    has_reference: bool
    first_codes: tuple[FirstCode, ...]
    """In the order of codes."""

    @property
    def elsewhere(self) -> float | None:
        """Share of the arrivals that would have to lie elsewhere to be spread as the others are.

        None without arrivals, or without other images. It is no verdict: how much of it is chance
        is what the reference is for.
        """
        others = sum(code.images - code.arrivals for code in self.first_codes)
        arrived = sum(code.arrivals for code in self.first_codes)
        if not others or not arrived:
            return None
        gap = 0.0
        for code in self.first_codes:
            gap += abs(code.arrivals / arrived - (code.images - code.arrivals) / others)
        return gap / 2

    def to_dict(self) -> JsonObject:
        """Its part of the JSON document."""
        codes = []
        for code in self.first_codes:
            codes.append({"code": code.code, "arrivals": code.arrivals, "images": code.images})
        return {
            "generation": self.generation,
            "arrived": self.arrived,
            "wanted": self.wanted,
            "has_reference": self.has_reference,
            "elsewhere": self.elsewhere,
            "first_codes": codes,
        }


def early_arrivals(
    conn: Connection, live: Generation, reference: int, window: int
) -> EarlyArrivals:
    """Count the arrivals that the first check of the live generation waits for.

    `reference` and `window`: images that make the one and the other.
    """
    stored = monitoring.stored_reference(conn, live.id)
    if stored is None:
        # As the job does it: arrivals before the switch were another generation's.
        after = monitoring.first_key_since(conn, live.live_at or live.created_at) - 1
        wanted = reference
    else:
        after = stored.last_key
        wanted = window
    keys = monitoring.first_arrivals(conn, live.id, after, wanted)
    arrived = monitoring.arrivals(conn, live.id, live.shape, keys)
    counts = Counter(int(codes[0]) for codes in arrived.codes)
    codes = []
    for branch in subtrees(conn, live.id, live.shape, [], 0):
        (code,) = branch.codes
        codes.append(FirstCode(code, counts[code], branch.images))
    return EarlyArrivals(live.id, len(keys), wanted, stored is not None, tuple(codes))


def early_sentence(early: EarlyArrivals) -> str:
    """What is known before the first check."""
    what = "that the first check looks at" if early.has_reference else "that become its reference"
    said = f"{early.arrived:,} of the {early.wanted:,} arrivals {what} have come."
    if early.elsewhere is None:
        return said
    return (
        f"{said} {early.elsewhere:.0%} of them would have to lie under other first codes to be"
        " spread as the images before; there is no limit for it yet."
    )
