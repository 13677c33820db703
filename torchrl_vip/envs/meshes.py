"""Fewer triangles for what software rendering draws slowly; physics stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np

LARGE = 5000  # faces: smaller meshes cost little, and fine prints on them would change


def simplify_meshes(model: Any, cell: float) -> None:
    """Merge the vertices of large meshes that share a cell of a grid, in place.

    Vertex clustering (Rossignac and Borrel, 1993): a cell is represented by its vertex nearest to
    their mean, so that vertices, normals and texture coordinates stay those of the model, and only
    faces between three different cells are kept. Call it before a renderer uploads the model.
    MuJoCo collides convex hulls, which have faces of their own; rays are cast at the new ones.

    Args:
        model: a ``mujoco.MjModel``.
        cell: side of the grid's cells, m.
    """
    for mesh in np.flatnonzero(model.mesh_facenum > LARGE):
        start, first = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        vertices = model.mesh_vert[start : start + model.mesh_vertnum[mesh]]
        faces = slice(first, first + model.mesh_facenum[mesh])
        merged = _representatives(vertices, cell)[model.mesh_face[faces]]
        ordered = np.sort(merged, 1)
        whole = (ordered[:, 0] < ordered[:, 1]) & (ordered[:, 1] < ordered[:, 2])
        _, unique = np.unique(ordered, axis=0, return_index=True)
        kept = unique[whole[unique]]
        kept.sort()
        model.mesh_face[first : first + len(kept)] = merged[kept]
        for corners in (model.mesh_facenormal, model.mesh_facetexcoord):
            corners[first : first + len(kept)] = corners[faces][kept]
        model.mesh_facenum[mesh] = len(kept)


def _representatives(vertices: np.ndarray, cell: float) -> np.ndarray:
    """For each vertex [V, 3] the number of the one that stands for its cell, [V]."""
    _, number = np.unique(np.floor(vertices / cell).astype(int), axis=0, return_inverse=True)
    number = number.reshape(-1)
    size = np.bincount(number)
    mean = np.stack([np.bincount(number, axis) for axis in vertices.T], 1) / size[:, None]
    off = np.linalg.norm(vertices - mean[number], axis=1)
    nearest = np.lexsort((off, number))[np.cumsum(size) - size]
    return nearest[number]
