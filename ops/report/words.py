"""The words of the reports: cohorts and monitors by name, and the glossary at the end of a page."""

from ops.report.formatting import one_line

# What to call the images of a cohort of `recall-probe`, youngest first.
COHORT_WORDS = {
    "hour": "younger than an hour",
    "day": "an hour to a day",
    "week": "a day to a week",
    "older": "older than a week",
    "trained": "learned in training",
}

# Name and meaning of each known monitor. Another one is shown by its own name.
_MONITORS = {
    "id1": ("first codes", "which first codes the images get"),
    "id2": ("second codes", "which second codes the images get"),
    "id3": ("third codes", "which third codes the images get"),
    "id4": ("fourth codes", "which fourth codes the images get"),
    "embedding": ("embedding", "the average embedding of the images"),
    "novelty": ("novelty", "how many images are unlike all images of the reference"),
    "confidence": ("confidence", "how sure the model is of the identifiers it gives"),
    "agreement": ("agreement", "how often the model and the codebook give the same first code"),
    "leaf-load": ("leaf load", "how many images share a leaf"),
    "suffix-pressure": ("suffix pressure", "how many images are in leaves that are nearly full"),
    "query-score": ("query score", "how well the best answers match real queries"),
}

# Words of a page and what they mean, as in `docs/glossary.md`; related words together.
GLOSSARY = {
    "R@10": (
        "Recall at ten: the share of probes whose own image is among the first ten answers. R@1 "
        "and R@5 likewise. It counts images, never identifiers."
    ),
    "probe": (
        "A known-item query: a caption of a stored image, asked to see at which rank the image "
        "comes back. The job recall-probe asks a sample of them every hour: a probe run."
    ),
    "95% interval": (
        "A probe run asks a sample of the images. The true share is within the interval 19 times "
        "in 20 (Wilson 1927); two figures whose intervals overlap widely show no clear difference."
    ),
    "exact search": (
        "The query compared with every image by the same encoder. It is slow for many images and "
        "hard to beat: it is the baseline of all recall figures."
    ),
    "cohort": (
        "Probes grouped by the age of their image. Trained images are those that the generation "
        "learned from; all others got their identifier from the model when they arrived."
    ),
    "generation": (
        "One codebook, one model and one trie that belong together. Exactly one generation is "
        "live and answers queries; G4 is generation 4."
    ),
    "candidate, shadow": (
        "A candidate is a generation that may become live. Once it is complete it is a shadow: "
        "every arrival is assigned in it too, and some queries are answered by it for comparison."
    ),
    "switch": (
        "The moment from which another generation answers. A rollback is a switch to the "
        "fallback, the generation that was live before."
    ),
    "refresh, re-clustering": (
        "A refresh trains the live model further, on new images and a replay of old ones; "
        "identifiers stay. Re-clustering fits a new codebook to what is stored now and keeps as "
        "many identifiers as it can."
    ),
    "gate": (
        "The rule that decides whether a candidate may become live: it may not lose more recall "
        "than a set limit, miss images of the live generation, or be slower."
    ),
    "monitor": (
        "One statistic of a window, a number of consecutive arrivals, compared with the "
        "generation's first arrivals, the reference. The job drift-report reads all monitors "
        "every hour: a drift check."
    ),
    "effect": (
        "How far a window differs from the reference, in the monitor's own unit. 0 is no "
        "difference."
    ),
    "limit": (
        "The effect from which a difference matters. An alarm needs both: an effect at its limit "
        "or beyond, and a p-value at its own limit or below. That limit was found by replaying "
        "arrivals without drift."
    ),
    "p-value": (
        "How often chance alone gives an effect this large while nothing drifts, corrected for "
        "the number of monitors."
    ),
    "ticket, page": (
        "The levels of an alarm. A ticket can wait: something drifts, but recall holds. A page "
        "cannot wait: recall has fallen too, measured on the tenth of the arrivals that is least "
        "like the reference, against the same tenth of the reference."
    ),
    "code, leaf": (
        "The first four numbers of an identifier are its codes (id1 to id4); a leaf is the set of "
        "images with the same four codes."
    ),
    "codes in use": (
        "The number of equally frequent codes that would give the same entropy: the perplexity of "
        "the histogram, e to the power of its entropy."
    ),
    "Gini, p99": (
        "Gini says how unevenly images fill the leaves: 0 when all leaves hold the same number, "
        "near 1 when few leaves hold everything. p99 is the load that the leaves of 99 of 100 "
        "images stay below."
    ),
    "suffix pressure": (
        "Images in one leaf are told apart by a suffix, of which there is a fixed number. Suffix "
        "pressure is the share of arrivals whose leaf is nearly full. When a leaf is full, an "
        "image spills: it goes to the next best leaf with room."
    ),
}


def monitor_words(name: str) -> str:
    """A monitor's name in words."""
    if name in _MONITORS:
        return _MONITORS[name][0]
    return one_line(name.replace("_", " ").replace("-", " "), 40)


def monitor_meaning(name: str) -> str:
    """What a monitor watches; a dash when it is not a known one."""
    return _MONITORS[name][1] if name in _MONITORS else "—"
