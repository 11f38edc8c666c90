"""Rows of the table of generations, made without a database."""

from datetime import UTC, datetime, timedelta

from schemas.generation_config import GenerationConfig
from schemas.identifiers import IdentifierShape
from workers.repository.generations import Generation

SHAPE = IdentifierShape((2, 2, 2, 2), 4)
NOW = datetime(2026, 11, 2, 12, tzinfo=UTC)


def generation(
    number: int,
    state: str = "shadow",
    *,
    days_since_end: float | None = None,
    folder: str | None = None,
    shape: IdentifierShape = SHAPE,
    config: GenerationConfig | None = None,
) -> Generation:
    """A generation in a state, retired or failed some days before `NOW`."""
    ended_at = None if days_since_end is None else NOW - timedelta(days=days_since_end)
    return Generation(
        id=number,
        state=state,
        codebook_version=None,
        checkpoint_path=folder,
        shape=shape,
        config=config or GenerationConfig(),
        created_at=NOW - timedelta(days=100),
        live_at=None,
        ended_at=ended_at,
    )
