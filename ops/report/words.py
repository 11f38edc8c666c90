"""Words: how the reports say numbers, times and the names of things."""

import re
import unicodedata
from datetime import datetime

MOST_LETTERS = 300
"""Longer texts from the database are cut: nothing that was written into it may fill a page."""

COHORT_WORDS = {
    "hour": "younger than an hour",
    "day": "an hour to a day",
    "week": "a day to a week",
    "older": "older than a week",
    "trained": "learned in training",
}

MONITORS = {
    "id1": ("first codes", "which of the first codes images get"),
    "id2": ("second codes", "which of the second codes images get"),
    "id3": ("third codes", "which of the third codes images get"),
    "id4": ("fourth codes", "which of the fourth codes images get"),
    "embedding": ("embedding", "where the images lie, on average"),
    "novelty": ("novelty", "how many images lie far from all that was there"),
    "confidence": ("confidence", "how sure the model is of the identifiers it gives"),
    "agreement": ("agreement", "how often the model and the codebook give the same first code"),
    "leaf-load": ("leaf load", "how many images share a leaf"),
    "suffix-pressure": ("suffix pressure", "how many images stand in leaves that are nearly full"),
    "query-score": ("query score", "how good the best answers of real queries are"),
}
"""Names and meanings of the monitors there are; one that is not listed is shown by its own name."""

GLOSSARY = {
    "R@10": (
        "Recall at ten. Each probe asks the caption of a known image; R@10 is the share of captions whose own image is among the first "
        "ten answers. R@1 and R@5 likewise. It counts images, never identifiers."
    ),
    "95% interval": (
        "A probe asks a sample of the images. The true share lies within the interval 19 times in 20 (Wilson 1927); two figures whose "
        "intervals overlap widely are no news."
    ),
    "exact search": (
        "Every stored embedding compared with the query's, by the same encoder, brute force. Slow at size and hard to beat: the yardstick."
    ),
    "cohort": (
        "Images of one age at the time of the probe. Trained images are those that the generation learned from; all others were given "
        "their identifier by the model on arrival."
    ),
    "generation": "One codebook, one model and one trie that belong together. Exactly one is live; G4 is generation 4.",
    "switch": "The moment from which another generation answers. A rollback is a switch back.",
    "gate": "What a candidate must pass before it may answer: it may not lose recall on probes beyond a set bound, nor hold fewer images.",
    "effect": "How far what arrives now differs from what the generation learned from, in the monitor's own unit. 0 is no difference.",
    "limit": (
        "The effect from which a difference matters. An alarm needs both: an effect at its limit or beyond, and a p-value at its own limit "
        "or below, which was found by replaying drift-free arrivals."
    ),
    "p-value": "How often chance alone gives as large an effect while nothing drifts, corrected for the number of monitors.",
    "ticket, page": (
        "A ticket can wait for working hours. A page cannot: recall itself has moved, that of the tenth of the arrivals that is least "
        "like the generation's first ones, against the same tenth of those."
    ),
    "code, leaf": (
        "An identifier's first four numbers are codes (id1 to id4); all images with the same four stand in one leaf."
    ),
    "codes in use": "As how many equally frequent codes the histogram counts: e to the power of its entropy (perplexity).",
    "Gini, p99": (
        "How unevenly images fill the leaves: 0 when all hold the same, near 1 when few hold everything; "
        "and the load that 99 of 100 images' leaves stay below."
    ),
    "suffix pressure": (
        "Images in one leaf are told apart by a suffix, of which there are only so many: the share of arrivals whose leaf is nearly "
        "full. When a leaf is full, arrivals spill to their next-best one."
    ),
}

_SPACES = re.compile(r"\s+")


def plain(text: object, most: int = MOST_LETTERS) -> str:
    """One line of readable text: no control or direction characters, no runs of spaces, cut at `most` letters."""
    kept = "".join(
        " " if unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn") else one
        for one in str(text)[: 4 * most]
    )
    line = _SPACES.sub(" ", kept).strip()
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def percent(share: float, digits: int = 1) -> str:
    """A share from 0 to 1 as per cent."""
    return f"{share * 100:.{digits}f}%"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign."""
    value = round(difference * 100, 1)
    return "no difference" if value == 0 else f"{'+' if value > 0 else '−'}{abs(value):.1f} points"


def moment(at: datetime | None) -> str:
    """A time in UTC, to the minute."""
    return "—" if at is None else f"{at:%-d %b %Y %H:%M} UTC"


def figure(value: float | None) -> str:
    """A number with three significant digits and no exponent where none is needed."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def span(seconds: float) -> str:
    """A duration in its natural unit."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{1 if seconds < 10 else 0}f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def monitor_words(name: str) -> str:
    """A monitor's name as words."""
    return (
        MONITORS[name][0]
        if name in MONITORS
        else plain(name.replace("_", " ").replace("-", " "), 40)
    )


def monitor_meaning(name: str) -> str:
    """What a monitor watches."""
    return MONITORS[name][1] if name in MONITORS else "—"
