"""The settings of retrieval: how an image is posted, and how a query is answered."""

from dataclasses import dataclass

from schemas.environment import number, setting, whole


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How images are posted and queries answered; the same values for queries, gates and probes."""

    beams: int = setting(
        "SIGMA_BEAMS",
        whole(1, 1000),
        "Beams of the constrained search. More cost time. A guided search keeps twice as many, and "
        "five times as many where the model reads vectors.",
        default=20,
    )
    postings: int = setting(
        "SIGMA_POSTINGS",
        whole(1, 20),
        "Leaves that an image is posted under: its primary and the alternates. One where the model "
        "reads images by their vectors.",
        default=3,
    )
    codebook_vote: float = setting(
        "SIGMA_CODEBOOK_VOTE",
        number(0, 1000),
        "How many nats likelier the model must find another identifier for a new image to get that "
        "one and not the codebook's. 0: the model alone decides, as in the paper.",
        default=8.0,
    )
    fusion_weight: float = setting(
        "SIGMA_FUSION_WEIGHT",
        number(0, 100),
        "Weight of the decoder's log-probability beside the image-text similarity. A guided search "
        "takes a fifteenth of it, and none where the model reads vectors.",
        default=0.3,
    )
    candidates: int = setting(
        "SIGMA_CANDIDATES",
        whole(1, 1_000_000),
        "Most images that a query scores, the likeliest ones of the leaves that it reaches. A "
        "guided search scores 0.3% of the images, 40 to 300 of them, and where the model reads "
        "vectors 2%, 60 to 600, within these; more only where more results are asked for, and "
        "twice as many in a generation of an earlier version. A filter that few beams satisfy "
        "is answered by scoring all images that it allows.",
        default=1000,
    )
