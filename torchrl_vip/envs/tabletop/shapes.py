"""Meshes, soft bodies and pictures of the tabletop's things, made of numbers; nothing is read from a file.

Lengths in metres.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import permutations, product

import numpy as np
from PIL import Image

SIDES = 24  # of what is turned on a lathe
CORE = 0.35  # of a half disc's straight side: where its grid's lines begin
NOTCH = (
    0.05  # of its radius: how far that piece is bent up, as three points in line span no triangle
)


def lathe(name: str, profile: Sequence[tuple[float, float]]) -> str:
    """The MJCF of a mesh: ``profile``, (radius, height) from one end of the z axis to the other, turned."""
    angles = 2 * np.pi * np.arange(SIDES) / SIDES
    ring = np.stack([np.cos(angles), np.sin(angles)], -1)
    rings = [np.column_stack([radius * ring, np.full(SIDES, z)]) for radius, z in profile]
    ends = np.array([[0.0, 0.0, profile[0][1]], [0.0, 0.0, profile[-1][1]]])
    faces, bottom = [], len(profile) * SIDES
    for side in range(SIDES):
        after = (side + 1) % SIDES
        for low in range(0, bottom - SIDES, SIDES):
            a, b, c, d = low + side, low + after, low + SIDES + side, low + SIDES + after
            faces += [(a, b, d), (a, d, c)]
        top = bottom - SIDES
        faces += [(bottom, after, side), (bottom + 1, top + side, top + after)]
    return f'<mesh name="{name}" vertex="{_text([*rings, ends])}" face="{_text(np.array(faces))}"/>'


def half_disc(
    radius: float, thickness: float, counts: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A slab in the shape of half a disc that stands on its straight side, as tetrahedra.

    Its thickness is along x, the straight side along y, and z begins at 0.

    Args:
        counts: of the grid's points along thickness, arc and radius.

    Returns:
        points ``[V, 3]``; tetrahedra ``[T, 4]``; and for a picture of :func:`melon_picture` how far from the
        rind each point is (0 on it, 1 in the middle) and at which part of the half turn, ``[V, 2]``.
    """
    across, along, up = counts
    w, u, v = np.meshgrid(
        np.linspace(-0.5, 0.5, across),
        np.linspace(-1, 1, along),
        np.linspace(0, 1, up),
        indexing="ij",
    )
    # from a piece of the straight side outwards to the arc: no corner of a cell is flat
    y = (1 - v) * CORE * u + v * np.sin(np.pi / 2 * u)
    z = (v + (1 - v) * NOTCH) * np.cos(np.pi / 2 * u)
    points = np.stack([thickness * w, radius * y, radius * z], -1).reshape(-1, 3)
    picture = np.stack([1 - np.hypot(y, z), np.arctan2(z, y) / np.pi], -1).reshape(-1, 2)
    number = np.arange(across * along * up).reshape(counts)
    tetrahedra = []
    for cell in product(*(range(count - 1) for count in counts)):
        for order in permutations(range(3)):  # Kuhn: six paths along the edges of a cell
            corner = np.array(cell)
            path = [number[tuple(corner)]]
            for axis in order:
                corner[axis] += 1
                path.append(number[tuple(corner)])
            edges = points[path[1:]] - points[path[0]]
            if np.linalg.det(edges) < 0:
                path[2], path[3] = path[3], path[2]
            tetrahedra.append(path)
    return points, np.array(tetrahedra), np.clip(picture, 0.03, 0.97)


def melon_picture(size: int = 128) -> np.ndarray:
    """Rind, flesh and seeds, uint8 [size, size, 3]: columns lead from the rind inwards, rows along it."""
    inwards, along = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    picture = np.empty((size, size, 3))
    picture[:] = (225, 45, 55)
    picture[inwards < 0.16] = (235, 225, 190)
    stripes = np.sin(2 * np.pi * 9 * along) > 0.3
    picture[inwards < 0.10] = (70, 140, 60)
    picture[(inwards < 0.10) & stripes] = (25, 75, 35)
    for depth, count in ((0.32, 6), (0.55, 4)):
        for seed in (np.arange(count) + 0.5) / count:
            picture[np.hypot((inwards - depth) / 0.05, (along - seed) / 0.02) < 1] = (40, 25, 20)
    return picture.astype(np.uint8)


def towel_picture(size: int = 128) -> np.ndarray:
    """White terry with coloured stripes at two ends, uint8 [size, size, 3]."""
    rows, columns = np.indices((size, size))
    weave = np.random.default_rng(0).normal(0, 5, (size, size)) + 6 * ((rows + columns) % 2)
    picture = np.repeat((226 + weave)[..., None], 3, -1)
    for end in (rows, size - 1 - rows):
        for first, colour in ((0.13, (225, 95, 45)), (0.17, (40, 60, 110)), (0.21, (200, 60, 60))):
            picture[(end >= first * size) & (end < (first + 0.025) * size)] = colour
    return np.clip(picture, 0, 255).astype(np.uint8)


def png(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as the bytes of a file."""
    Image.fromarray(picture).save(file := io.BytesIO(), "png")
    return file.getvalue()


def _text(numbers: np.ndarray | list[np.ndarray]) -> str:
    return " ".join(f"{n:.6g}" for n in np.concatenate([np.ravel(part) for part in numbers]))
