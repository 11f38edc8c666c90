"""The structure half of the trie; test_trie checks its counts against a plain set of tuples."""

import pytest
import torch

from model.retrieval.branches import Branches
from schemas.errors import RefuseToStartError
from schemas.identifiers import IdentifierShape


def test_a_shape_too_large_for_dense_tables_is_refused() -> None:
    with pytest.raises(RefuseToStartError, match="lower a level"):
        Branches(
            IdentifierShape(codes=(1 << 10, 1 << 10, 1 << 5, 1 << 5), suffixes=1),
            torch.device("cpu"),
        )
