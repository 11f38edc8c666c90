"""The addresses of the API: what each needs of a key, and how large and slow a body may be.

An address that is not listed is not served, so that a new one needs a decision.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from schemas.api_keys import ApiScope
from workers.runtime.metrics_server import METRICS_PATH

HEALTH_PATH = "/healthz"
READINESS_PATH = "/readyz"
DOCUMENTATION_PATH = "/docs"
PAGE_PATH = "/"
PAGE_FILE_PATH = "/page/{name}"
DESCRIPTION_PATH = "/openapi.json"

QUERY_PATH = "/v1/query"
BATCH_PATH = "/v1/query/batch"
IMAGES_PATH = "/v1/images"
IMAGE_PATH = "/v1/images/{image_id}"
PICTURE_PATH = "/v1/images/{image_id}/picture"
TREE_PATH = "/v1/identifiers"
SUBTREE_PATH = "/v1/identifiers/{prefix}"
DEAD_LETTERS_PATH = "/v1/dead-letters"
REPLAY_PATH = "/v1/dead-letters/replay"
GENERATIONS_PATH = "/v1/generations"
PROMOTION_PATH = "/v1/generations/{generation}/promote"
ROLLBACK_PATH = "/v1/generations/rollback"
REPORT_PATH = "/v1/reports/{report}"

# What each address needs where keys are configured, by method. None: open, for load balancers and
# for whoever wants to know what the API is; these tell nothing of the images.
NEEDED_SCOPES: Final[Mapping[str, Mapping[str, ApiScope | None]]] = {
    QUERY_PATH: {"POST": ApiScope.READ},
    BATCH_PATH: {"POST": ApiScope.READ},
    IMAGES_PATH: {"GET": ApiScope.READ},
    IMAGE_PATH: {"GET": ApiScope.READ, "PUT": ApiScope.WRITE, "DELETE": ApiScope.WRITE},
    PICTURE_PATH: {"GET": ApiScope.READ},
    TREE_PATH: {"GET": ApiScope.READ},
    SUBTREE_PATH: {"GET": ApiScope.READ},
    DEAD_LETTERS_PATH: {"GET": ApiScope.ADMIN},
    REPLAY_PATH: {"POST": ApiScope.ADMIN},
    GENERATIONS_PATH: {"GET": ApiScope.READ},
    PROMOTION_PATH: {"POST": ApiScope.ADMIN},
    ROLLBACK_PATH: {"POST": ApiScope.ADMIN},
    REPORT_PATH: {"GET": ApiScope.READ},
    METRICS_PATH: {"GET": ApiScope.METRICS},
    HEALTH_PATH: {"GET": None},
    READINESS_PATH: {"GET": None},
    PAGE_PATH: {"GET": None},
    PAGE_FILE_PATH: {"GET": None},
    DOCUMENTATION_PATH: {"GET": None},
    DESCRIPTION_PATH: {"GET": None},
}

# Addresses whose bodies may hold a picture, which takes longer to send than a text.
_WITH_PICTURE = ((QUERY_PATH, "POST"), (IMAGE_PATH, "PUT"))

# Methods that change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD"})

_PARAMETER = re.compile(r"\{\w+\}")


@dataclass(frozen=True, slots=True)
class Address:
    """One address of the table."""

    path: str
    """With parameters in braces, as in `NEEDED_SCOPES`."""
    scopes: Mapping[str, ApiScope | None]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that are answered: HEAD wherever GET is."""
        return tuple(self.scopes) + (("HEAD",) if "GET" in self.scopes else ())

    def needed(self, method: str) -> ApiScope | None:
        """What a request needs; that of the address's first method where it has no such method."""
        asked = "GET" if method == "HEAD" else method
        return self.scopes.get(asked, next(iter(self.scopes.values())))

    def takes_picture(self, method: str) -> bool:
        """Whether the body may hold a picture."""
        return (self.path, method) in _WITH_PICTURE


def find_address(path: str) -> Address | None:
    """The address of a path as it was sent, percent-encoded; None when there is none.

    A slash that is encoded belongs to a parameter, so an image id may hold some.
    """
    exact = NEEDED_SCOPES.get(path)
    if exact is not None and "{" not in path:
        return Address(path, exact)
    for template, scopes in NEEDED_SCOPES.items():
        if "{" in template and _pattern(template).fullmatch(path):
            return Address(template, scopes)
    return None


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(_PARAMETER.sub("[^/]+", template))
