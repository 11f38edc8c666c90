"""The codebook: everything fitted that turns an embedding into id1..id4 (paper 3.1, appendix E).

It is immutable, and its version is a hash of its content.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.identifiers.kmeans import kmeans_centres, minibatch_centres
from model.identifiers.seminmf import fit_seminmf, nonnegative_coefficients
from schemas.errors import RefuseToStartError, UsageError
from schemas.identifiers import IdentifierShape
from schemas.records import FloatArray, IntArray

# Rows that are encoded at a time: distances to 1,024 centroids take 64 MiB.
_BLOCK = 8192

# Coordinate of a centre that no unit row is nearest to.
_FAR = 1e3

# Fields of a codebook in the order of its hash; their names are stored where they are not None.
_ARRAYS = ("centroids", "second", "third", "codewords", "directions")


def no_progress(steps: int) -> None:
    """The `tick` of a caller that shows nothing."""


@dataclass(frozen=True, slots=True)
class CodebookConfig:
    """How a codebook is fitted.

    K_4 = N**`subspaces`: id4 is one mixed-radix code over M subspaces of N codewords each.
    """

    shape: IdentifierShape
    subspaces: int = 1
    seed: int = 0
    iterations: int = 30
    """Of each Semi-NMF."""
    centred: bool = True
    """Whether id2 and id3 are components of the residuals to id1's centroid; False: of the rows of
    its cluster as they are, the paper's V_local."""

    def to_json(self) -> dict[str, Any]:
        """The stored form, which is hashed; `centred` is in it only where it is False.

        Codebooks of versions that had no choice keep their hash.
        """
        document = asdict(self)
        if self.centred:
            del document["centred"]
        return document

    @property
    def codewords(self) -> int:
        """N, the codewords of one subspace; `UsageError` when K_4 is not an M-th power."""
        total = self.shape.codes[3]
        count = round(total ** (1 / self.subspaces))
        if count**self.subspaces != total:
            raise UsageError(
                f"the codes of id4 must be a {self.subspaces}-th power, one factor for each"
                f" subspace, got {total}; change K4 or the subspaces"
            )
        return count


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """Fitted arrays, all float32.

    Rows of an id1 cluster that held no training row are zero: such a cluster encodes as code 0.
    """

    config: CodebookConfig
    centroids: FloatArray
    """(K1, D)"""
    second: FloatArray
    """(K1, K2, D) Semi-NMF directions of each id1 cluster"""
    third: FloatArray
    """(K1, K3, D) Semi-NMF directions of what the second level leaves over"""
    codewords: FloatArray
    """(M, N, D/M) centres of each subspace of the residual"""
    directions: FloatArray | None = None
    """(D, D) map of embeddings to rows that all of the above is about
    (`model.identifiers.caption_directions`); None: embeddings as they are."""

    @property
    def width(self) -> int:
        """D, the embedding width."""
        return int(self.centroids.shape[1])

    @property
    def version(self) -> str:
        """Content hash: the same fit on the same data has the same version."""
        digest = hashlib.sha256(json.dumps(self.config.to_json(), sort_keys=True).encode())
        for array in self._arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def rows(self, embeddings: FloatArray) -> FloatArray:
        """(N, D) float32 rows that (N, D) embeddings are encoded as; `UsageError` as `checked`."""
        return mapped(checked(embeddings, self.width), self.directions)

    def encode(self, embeddings: FloatArray) -> IntArray:
        """(N, 4) int64 codes of (N, D) embeddings, seen or not; bounded memory."""
        rows = self.rows(embeddings)
        codes = np.zeros((len(rows), 4), dtype=np.int64)
        for start in range(0, len(rows), _BLOCK):
            block = slice(start, start + _BLOCK)
            codes[block] = self._encode_block(rows[block])
        return codes

    def leaves(self, embeddings: FloatArray) -> IntArray:
        """(N,) int64 packed id1..id4."""
        return pack_all(self.encode(embeddings), self.config.shape)

    def reconstruct(self, codes: IntArray) -> FloatArray:
        """(N, D) approximation of `rows` by (N, 4) codes: centroid plus codeword (equation 2)."""
        return self.centroids[codes[:, 0]] + self.codeword(codes[:, 3])

    def quantise(self, residual: FloatArray) -> IntArray:
        """(N,) id4 of (N, D) residuals to id1's centroid: the nearest codeword of each subspace."""
        spaces, count, width = self.codewords.shape
        code = np.zeros(len(residual), dtype=np.int64)
        for m in range(spaces):
            part = residual[:, m * width : (m + 1) * width]
            code = code * count + nearest(part, self.codewords[m])
        return code

    def codeword(self, code: IntArray) -> FloatArray:
        """(N, D) residuals that (N,) id4 codes mean."""
        spaces, count, _ = self.codewords.shape
        parts = []
        for m in range(spaces):
            digit = (code // count ** (spaces - 1 - m)) % count
            parts.append(self.codewords[m][digit])
        return np.concatenate(parts, axis=1)

    def save(self, folder: Path) -> None:
        """Write `codebook.npz` and `codebook.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "codebook.npz", **self._arrays())
        about = {"version": self.version, "config": self.config.to_json()}
        (folder / "codebook.json").write_text(json.dumps(about, indent=2))

    @classmethod
    def load(cls, folder: Path) -> "Codebook":
        """Read a saved codebook.

        `RefuseToStartError` when it is damaged, or its content does not match its version.
        """
        try:
            book, version = cls._read(folder)
        # Damage shows as whatever the readers of JSON, ZIP and arrays stumble over.
        except Exception as error:
            raise RefuseToStartError(
                f"the codebook {folder / 'codebook.npz'} cannot be read ({error}); restore it or"
                " train again"
            ) from error
        if book.version != version:
            raise RefuseToStartError(
                f"the codebook {folder} must have the content {version}, got"
                f" {book.version}: it was changed or damaged; restore it or train again"
            )
        return book

    @classmethod
    def _read(cls, folder: Path) -> "tuple[Codebook, str]":
        """Read the codebook, and the version that it had when it was written."""
        about = json.loads((folder / "codebook.json").read_text())
        settings = about["config"]
        shape = settings.pop("shape")
        config = CodebookConfig(
            shape=IdentifierShape(codes=tuple(shape["codes"]), suffixes=shape["suffixes"]),
            **settings,
        )
        with np.load(folder / "codebook.npz", allow_pickle=False) as arrays:
            book = cls(config=config, **{name: arrays[name] for name in arrays.files})
        return book, about["version"]

    def _arrays(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return {name: array for name, array in arrays.items() if array is not None}

    def _encode_block(self, rows: FloatArray) -> IntArray:
        codes = np.zeros((len(rows), 4), dtype=np.int64)
        codes[:, 0] = nearest(rows, self.centroids)
        residual = rows - self.centroids[codes[:, 0]]
        local = residual if self.config.centred else rows
        # The directions of id2 and id3 are each cluster's own, so rows go cluster by cluster.
        for cluster in np.unique(codes[:, 0]):
            members = np.flatnonzero(codes[:, 0] == cluster)
            codes[members, 1], rest = dominant(local[members], self.second[cluster])
            codes[members, 2], _ = dominant(rest, self.third[cluster])
        codes[:, 3] = self.quantise(residual)
        return codes


def checked(embeddings: FloatArray, width: int | None = None) -> FloatArray:
    """The (N, D) rows as float32.

    `UsageError` for another shape or width, and for NaN or infinity, with row numbers.
    """
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width):
        raise UsageError(f"embeddings must have shape (N, {width or 'D'}), got {rows.shape}")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UsageError(
            f"embeddings must be finite, got NaN or infinity in {len(bad)} of them, first rows"
            f" {bad[:5].tolist()}; check the encoder's output"
        )
    return rows


def mapped(rows: FloatArray, directions: FloatArray | None) -> FloatArray:
    """(N, D) float32 rows in other directions, (D, D); the same rows without any."""
    if directions is None:
        return rows
    # In double precision: a row's codes must not depend on which others are mapped with it.
    return (rows.astype(np.float64) @ directions.astype(np.float64)).astype(np.float32)


def nearest(rows: FloatArray, centres: FloatArray) -> IntArray:
    """(n,) int64 nearest of the (K, D) centres of each row (squared Euclidean, equation 1)."""
    centre_lengths = (centres.astype(np.float64) ** 2).sum(1)
    products = 2.0 * rows.astype(np.float64) @ centres.T.astype(np.float64)
    # The row's own length is left out: it is the same for every centre.
    return (centre_lengths - products).argmin(axis=1).astype(np.int64)


def dominant(rows: FloatArray, basis: FloatArray) -> tuple[IntArray, FloatArray]:
    """The component with the largest non-negative coefficient, and what it leaves over.

    `rows` (n, D), `basis` (k, D) → (n,) int64, (n, D) float32.
    """
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
    embeddings: FloatArray,
    config: CodebookConfig,
    tick: Callable[[int], None] = no_progress,
    directions: FloatArray | None = None,
) -> Codebook:
    """Fit all four levels on (N, D) embeddings, in other directions (D, D) where they are given.

    Calls `tick(1)` after each id1 cluster and at the end of the quantiser. Both Semi-NMF levels
    work on the residual to the id1 centroid: the centroid is common to the cluster and may be
    every row's dominant component otherwise (`CodebookConfig.centred`).
    """
    rows = mapped(checked(embeddings), directions)
    if not len(rows):
        raise UsageError(
            "a codebook needs at least one embedding, got none; ingest or list images first"
        )
    width = rows.shape[1]
    if width % config.subspaces:
        raise UsageError(
            f"the subspaces must divide the embedding width {width}, got {config.subspaces};"
            " change the subspaces"
        )
    centroids = _fit_centroids(rows, config.shape.codes[0], config.seed)
    cluster_of = nearest(rows, centroids)
    residual = rows - centroids[cluster_of]
    local = residual if config.centred else rows
    second, third = _fit_directions(local, cluster_of, config, tick)
    codewords = _fit_codewords(residual, config)
    tick(1)
    return Codebook(config, centroids, second, third, codewords, directions)


def _fit_directions(
    local: FloatArray,
    cluster_of: IntArray,
    config: CodebookConfig,
    tick: Callable[[int], None],
) -> tuple[FloatArray, FloatArray]:
    """Both Semi-NMF levels of each id1 cluster, (K1, K2, D) and (K1, K3, D)."""
    k1, k2, k3, _ = config.shape.codes
    width = local.shape[1]
    second = np.zeros((k1, k2, width), np.float32)
    third = np.zeros((k1, k3, width), np.float32)
    for cluster in range(k1):
        inside = local[cluster_of == cluster]
        # Each cluster and level has a seed of its own, whatever the others hold.
        if len(inside):
            seed = config.seed + cluster
            fitted = fit_seminmf(inside, k2, seed=seed, iterations=config.iterations)
            second[cluster] = fitted.basis
            _, rest = dominant(inside, second[cluster])
            fitted = fit_seminmf(rest, k3, seed=seed + k1, iterations=config.iterations)
            third[cluster] = fitted.basis
        tick(1)
    return second, third


def _fit_centroids(rows: FloatArray, count: int, seed: int) -> FloatArray:
    """(count, D) centres of id1."""
    used = min(count, len(np.unique(rows, axis=0)))
    return _fill_up(minibatch_centres(rows, used, starts=5, seed=seed), count)


def _fit_codewords(residual: FloatArray, config: CodebookConfig) -> FloatArray:
    """(M, N, D/M) centres of each subspace of the residual."""
    step = residual.shape[1] // config.subspaces
    codewords = []
    for m in range(config.subspaces):
        part = residual[:, m * step : (m + 1) * step]
        # Rows that differ by rounding only would make k-means warn of duplicate centres.
        used = min(config.codewords, len(np.unique(np.round(part, 6), axis=0)))
        centres = kmeans_centres(part, used, starts=3, seed=config.seed + m)
        codewords.append(_fill_up(centres.astype(np.float32), config.codewords))
    return np.stack(codewords)


def _fill_up(centres: FloatArray, count: int) -> FloatArray:
    """(count, D) centres: codes that too few distinct rows leave unused get one far away."""
    missing = count - len(centres)
    if not missing:
        return centres
    far = np.full((missing, centres.shape[1]), _FAR, dtype=np.float32)
    return np.vstack([centres, far])
