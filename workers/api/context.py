"""The API's context: what its resources are made of."""

from dataclasses import dataclass

from stream.images.decode_pool import DecodePool
from workers.api.call_pool import CallPool
from workers.api.explanation_memory import ExplanationMemory
from workers.api.maintenance import Maintenance
from workers.api.picture_links import PictureLinks
from workers.api.signatures import Signer
from workers.query.server import QueryServer
from workers.runtime.query_metrics import QueryMetrics
from workers.runtime.services import Services


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What answers requests."""

    services: Services
    server: QueryServer
    metrics: QueryMetrics
    calls: CallPool
    decoder: DecodePool
    """Decodes pictures that clients send, as intake does."""
    signer: Signer
    links: PictureLinks
    maintenance: Maintenance
    explanations: ExplanationMemory
