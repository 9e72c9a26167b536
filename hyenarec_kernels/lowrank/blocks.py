"""The blocks of a filter: what one chunk of input does to one chunk of output, in the local bases of the chunks.

On the run of lags that one chunk distance covers, the filter is the polynomial through its values at Chebyshev nodes.
In the block of that polynomial, all entries are zero whose two basis polynomials have degrees that add up to the number
of nodes or more.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from hyenarec_kernels.legendre import legendre_at

Array = npt.NDArray[np.float64]


def chebyshev_nodes(count: int) -> Array:
    nodes: Array = np.cos(np.pi * (np.arange(count) + 0.5) / count)
    return nodes


@lru_cache(maxsize=64)
def local_basis(chunk: int, rank: int) -> Array:
    """Orthonormal polynomials of degree < rank on `chunk` points, alternately even and odd: (chunk, rank). There are
    only `chunk` of them; further columns are zeros."""
    vandermonde = np.polynomial.legendre.legvander(np.linspace(-1, 1, chunk), min(rank, chunk) - 1)
    basis: Array = np.linalg.qr(vandermonde)[0].astype(np.float64)
    return np.pad(basis, ((0, 0), (0, rank - basis.shape[1])))


@lru_cache(maxsize=256)
def blocks_from_nodes(chunk: int, nodes: int) -> Array:
    """Maps a filter's values at `nodes` Chebyshev nodes of a run of lags to the entries (r, s), r + s < nodes, of the
    block Q^T T Q: (entries, nodes).

    T[i, j] = p(i - j), where p is the polynomial through the values, and Q is the local basis. p has degree < nodes, so
    the other entries are zero, and p(i - j) is known from its values for i and j on a grid of Chebyshev points of the
    chunk.
    """
    points, transform = chebyshev_nodes(nodes), chebyshev_transform(nodes)
    rows = np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, chunk), nodes - 1) @ transform
    to_basis = local_basis(chunk, nodes).T @ rows  # values on the points -> coefficients in the local basis
    shifts = (points[:, None] - points[None, :]).reshape(-1) / 2
    grid = (np.polynomial.chebyshev.chebvander(shifts, nodes - 1) @ transform).reshape(nodes, nodes, nodes)
    blocks = np.einsum("ra,abp,sb->rsp", to_basis, grid, to_basis, optimize=True)
    kept: Array = blocks[entries(nodes)]
    return kept


@lru_cache(maxsize=256)
def entries(nodes: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The indices (r, s) of every entry with r + s < nodes, in the order of blocks_from_nodes."""
    r = np.repeat(np.arange(nodes), np.arange(nodes, 0, -1))
    return r, np.concatenate([np.arange(nodes - row) for row in range(nodes)])


def kept_entries(nodes: int, rank: int, degree: int) -> npt.NDArray[np.bool_]:
    r, s = entries(nodes)
    return (r < rank) & (s < rank) & (r + s < degree)


def chebyshev_transform(count: int) -> Array:
    """Maps values at chebyshev_nodes(count) to Chebyshev coefficients: (count, count)."""
    weights = np.where(np.arange(count) == 0, 1.0, 2.0)[:, None]
    transform: Array = np.polynomial.chebyshev.chebvander(chebyshev_nodes(count), count - 1).T * (weights / count)
    return transform


def sampled_basis(lags: Array, terms: int, horizon: int) -> Array:
    """The Legendre basis at any lags, (lags, terms)."""
    basis: Array = legendre_at(torch.from_numpy(lags), terms, horizon).T.numpy()
    return basis
