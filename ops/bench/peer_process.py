"""The peer process: Evidently at work beside our monitors, on the same windows."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ops.bench.drift_pool import PooledImages
from ops.embedded.isolation import ISOLATED_ENVIRONMENT
from schemas.errors import WorkFailedError
from schemas.identifiers import LEVELS
from schemas.records import DoubleArray

# First components of an embedding that the peer sees: it scores columns one by one.
_EMBEDDING_COLUMNS = 16

# Columns that are categories: the codes, and whether model and codebook agree.
_CATEGORIES = LEVELS + 1

# Characters of the peer's error output that a message quotes.
_ERROR_TAIL = 300


@dataclass(frozen=True, slots=True)
class PeerShares:
    """Share of drifted columns in each window, by the peer."""

    drift_free: list[float]
    new_topic: list[float]


@dataclass(frozen=True, slots=True)
class PeerProcess:
    """The running peer."""

    process: "subprocess.Popen[str]"
    folder: "tempfile.TemporaryDirectory[str]"
    drift_free: int
    """How many of its windows are drift-free; they come first."""

    @classmethod
    def start(
        cls,
        python: Path,
        reference: PooledImages,
        drift_free: Sequence[PooledImages],
        new_topic: Sequence[PooledImages],
    ) -> "PeerProcess":
        """Start the peer with a Python that has Evidently."""
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "windows.npz"
        windows = [_columns(window) for window in (*drift_free, *new_topic)]
        np.savez(
            path,
            reference=_columns(reference),
            windows=np.stack(windows),
            categories=_CATEGORIES,
        )
        script = Path(__file__).with_name("evidently_peer.py")
        process = subprocess.Popen(
            [str(python), str(script), str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Else the script's folder comes first on the import path, with our `drift`, `query` …
            env=os.environ | ISOLATED_ENVIRONMENT,
        )
        return cls(process, folder, len(drift_free))

    def finish(self) -> PeerShares:
        """Wait for the peer; `WorkFailedError` when it failed."""
        output, errors = self.process.communicate()
        self.folder.cleanup()
        if self.process.returncode:
            raise WorkFailedError(
                f"the peer failed ({errors.strip()[-_ERROR_TAIL:]});"
                " make its environment again with: make peers"
            )
        # The last line: libraries may print before it.
        shares: list[float] = json.loads(output.strip().splitlines()[-1])
        return PeerShares(shares[: self.drift_free], shares[self.drift_free :])


def _columns(images: PooledImages) -> DoubleArray:
    """(n, C): categories, then confidence and the first components of the embedding."""
    window = images.window
    return np.column_stack(
        [
            window.codes,
            window.agreement,
            window.confidences,
            window.embeddings[:, :_EMBEDDING_COLUMNS],
        ]
    )
