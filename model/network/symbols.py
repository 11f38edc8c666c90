"""Symbols: tokens of rivals' identifiers, which share the backbone but not our five levels."""

from model.network.sigma import SigmaModel
from model.network.tokenizer import token_id
from model.network.vocabulary import extend_tables


def add_symbols(model: SigmaModel, count: int) -> list[int]:
    """Add tokens for so many symbols, in place; their ids in order."""
    known = len(model.tokenizer)
    names = [f"<symbol_{number}>" for number in range(count)]
    model.tokenizer.add_tokens(names, special_tokens=True)
    extend_tables(model.backbone, model.tokenizer, known)
    return [token_id(model.tokenizer, name) for name in names]
