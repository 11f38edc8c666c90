"""The codebook: everything fitted that turns an embedding into id1..id4 (paper 3.1, appendix E). Versioned, immutable."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans

from model.identifiers.seminmf import fit_seminmf, nonnegative_coefficients
from schemas.errors import RefuseToStartError, UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray

_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class CodebookConfig:
    """How a codebook is fitted. K_4 = N**`subspaces`: id4 is one mixed-radix code over M subspaces of N codewords."""

    shape: IdentifierShape
    subspaces: int = 1
    seed: int = 0
    iterations: int = 30

    @property
    def codewords(self) -> int:
        """N, the codewords of one subspace; `UsageError` when K_4 is not an M-th power."""
        count = round(self.shape.codes[3] ** (1 / self.subspaces))
        if count**self.subspaces != self.shape.codes[3]:
            raise UsageError(
                f"id4 has {self.shape.codes[3]} codes, which is no {self.subspaces}-th power; change K4 or the subspaces"
            )
        return count


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Fitted arrays, all float32.

    `centroids` (K1, D); `second` (K1, K2, D) and `third` (K1, K3, D) Semi-NMF directions of each id1 cluster;
    `codewords` (M, N, D/M). Rows of an id1 cluster that held no training row are zero: such a cluster encodes as code 0.
    """

    config: CodebookConfig
    centroids: FloatArray
    second: FloatArray
    third: FloatArray
    codewords: FloatArray

    @property
    def width(self) -> int:
        """D, the embedding width."""
        return int(self.centroids.shape[1])

    @property
    def version(self) -> str:
        """Content hash: the same fit on the same data has the same version."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for array in (self.centroids, self.second, self.third, self.codewords):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def encode(self, embeddings: FloatArray) -> IntArray:
        """(N, 4) int64 codes of (N, D) embeddings, seen or not; bounded memory."""
        rows = checked(embeddings, self.width)
        blocks = [
            self._encode_block(rows[start : start + _BLOCK])
            for start in range(0, len(rows), _BLOCK)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, 4), dtype=np.int64)

    def leaves(self, embeddings: FloatArray) -> IntArray:
        """(N,) int64 packed id1..id4."""
        return pack_all(self.encode(embeddings), self.config.shape)

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """(N, D) approximation from codes alone: the id1 centroid plus the id4 codeword of the residual (equation 2)."""
        return self.centroids[codes[:, 0]] + self.codeword(codes[:, 3])

    def save(self, folder: Path) -> None:
        """Write `codebook.npz` and `codebook.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "config"}
        np.savez(folder / "codebook.npz", **arrays)
        about = {"version": self.version, "config": asdict(self.config)}
        (folder / "codebook.json").write_text(json.dumps(about, indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Codebook":
        """Read a saved codebook; refuses one whose content does not match its version."""
        about = json.loads((folder / "codebook.json").read_text())
        settings = about["config"]
        shape = settings.pop("shape")
        config = CodebookConfig(
            shape=IdentifierShape(codes=tuple(shape["codes"]), suffixes=shape["suffixes"]),
            **settings,
        )
        with np.load(folder / "codebook.npz", allow_pickle=False) as arrays:
            book = cls(config=config, **{name: arrays[name] for name in arrays.files})
        if book.version != about["version"]:
            raise RefuseToStartError(
                f"codebook {folder} has content {book.version} but says {about['version']}: it was changed or damaged; restore or retrain"
            )
        return book

    def _encode_block(self, rows: FloatArray) -> IntArray:
        codes = np.zeros((len(rows), 4), dtype=np.int64)
        codes[:, 0] = nearest(rows, self.centroids)
        residual = rows - self.centroids[codes[:, 0]]
        for cluster in np.unique(codes[:, 0]):
            at = np.flatnonzero(codes[:, 0] == cluster)
            codes[at, 1], left = dominant(residual[at], self.second[cluster])
            codes[at, 2], _ = dominant(left, self.third[cluster])
        codes[:, 3] = self.quantise(residual)
        return codes

    def quantise(self, residual: FloatArray) -> IntArray:
        """(N,) id4 of (N, D) residuals to the id1 centroid: the nearest codeword of each subspace."""
        spaces, count, width = self.codewords.shape
        code = np.zeros(len(residual), dtype=np.int64)
        for m in range(spaces):
            code = code * count + nearest(
                residual[:, m * width : (m + 1) * width], self.codewords[m]
            )
        return code

    def codeword(self, code: IntArray) -> FloatArray:
        """(N, D) residual that each id4 stands for."""
        spaces, count, _ = self.codewords.shape
        digits = [(code // count ** (spaces - 1 - m)) % count for m in range(spaces)]
        return np.concatenate([self.codewords[m][digit] for m, digit in enumerate(digits)], axis=1)


def checked(embeddings: FloatArray, width: int | None = None) -> FloatArray:
    """The rows as float32, or one clear `UsageError` (shape, width, NaN or infinity with row numbers)."""
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise UsageError(f"embeddings must have shape (N, {width or 'D'}), got {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UsageError(
            f"{len(bad)} embeddings hold NaN or infinity, first rows {bad[:5].tolist()}; check the encoder's output"
        )
    return rows


def nearest(rows: FloatArray, centres: FloatArray) -> IntArray:
    """Index of the nearest centre (squared Euclidean distance, equation 1) of each row, int64."""
    distance = (centres.astype(np.float64) ** 2).sum(1) - 2.0 * rows.astype(
        np.float64
    ) @ centres.T.astype(np.float64)
    return distance.argmin(axis=1).astype(np.int64)


def dominant(rows: FloatArray, basis: FloatArray) -> tuple[IntArray, FloatArray]:
    """Arg-max of the non-negative coefficients of each row, and what that component leaves over, (n, D) float32."""
    weights = nonnegative_coefficients(rows, basis)
    code = weights.argmax(axis=1)
    part = weights[np.arange(len(rows)), code][:, None] * basis[code]
    return code.astype(np.int64), (rows - part).astype(np.float32)


def pack_all(codes: IntArray, shape: IdentifierShape) -> IntArray:
    """(N,) packed leaves of (N, 4) codes."""
    leaf = np.zeros(len(codes), dtype=np.int64)
    for level, count in enumerate(shape.codes):
        leaf = leaf * count + codes[:, level]
    return leaf


def fit_codebook(
    embeddings: FloatArray, config: CodebookConfig, tick: Callable[[int], None] = lambda _: None
) -> Codebook:
    """Fit all four levels on (N, D) embeddings; `tick(1)` after each id1 cluster and at the end of the quantiser.

    Both Semi-NMF levels work on the residual to the id1 centroid: the centroid is common to the cluster and would be every
    row's dominant component otherwise.
    """
    rows = checked(embeddings)
    if not len(rows):
        raise UsageError(
            "a codebook needs at least one embedding, got none; ingest or list images first"
        )
    k1, k2, k3, _ = config.shape.codes
    width = rows.shape[1]
    if width % config.subspaces:
        raise UsageError(
            f"embedding width {width} is not a multiple of {config.subspaces} subspaces; change the subspaces"
        )
    centroids = _anchors(rows, k1, config.seed)
    anchor = nearest(rows, centroids)
    residual = rows - centroids[anchor]
    second, third = np.zeros((k1, k2, width), np.float32), np.zeros((k1, k3, width), np.float32)
    for cluster in range(k1):
        inside = residual[anchor == cluster]
        if len(inside):
            second[cluster] = fit_seminmf(
                inside, k2, seed=config.seed + cluster, iterations=config.iterations
            ).basis
            _, left = dominant(inside, second[cluster])
            third[cluster] = fit_seminmf(
                left, k3, seed=config.seed + k1 + cluster, iterations=config.iterations
            ).basis
        tick(1)
    step = width // config.subspaces
    parts = [residual[:, m * step : (m + 1) * step] for m in range(config.subspaces)]
    codewords = np.stack(
        [_padded_kmeans(part, config.codewords, config.seed + m) for m, part in enumerate(parts)]
    )
    tick(1)
    return Codebook(
        config=config, centroids=centroids, second=second, third=third, codewords=codewords
    )


def _anchors(rows: FloatArray, count: int, seed: int) -> FloatArray:
    used = min(count, len(np.unique(rows, axis=0)))
    fitted = MiniBatchKMeans(used, n_init=5, batch_size=2048, random_state=seed).fit(rows)
    return _fill(fitted.cluster_centers_.astype(np.float32), count)


def _padded_kmeans(rows: FloatArray, count: int, seed: int) -> FloatArray:
    used = min(count, len(np.unique(np.round(rows, 6), axis=0)))
    return _fill(
        KMeans(used, n_init=3, random_state=seed).fit(rows).cluster_centers_.astype(np.float32),
        count,
    )


def _fill(centres: FloatArray, count: int) -> FloatArray:
    """Codes that too few distinct rows leave unused get a centre no row is nearest to."""
    far = np.full((count - len(centres), centres.shape[1]), 1e3, dtype=np.float32)
    return np.vstack([centres, far]) if len(far) else centres
