"""Statistics that LeRobot keeps of each feature: per episode, and of the whole dataset.

Of numbers ``[D]`` arrays "min", "max", "mean", "std" and the quantiles; of pictures the same as
``[3, 1, 1]`` in [0, 1]. "count" is the number of frames, ``[1]``.
"""

from __future__ import annotations

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
SIDE = 150
"""Pixels of a picture's longer side that are counted, about."""

Stats = dict[str, np.ndarray]


def column_stats(values: np.ndarray) -> Stats:
    """Statistics of ``[T]`` or ``[T, D]`` numbers; rows with a NaN or an infinity are left out.

    Without any other row, "count" is 0 and all else NaN.
    """
    rows = np.asarray(values, np.float64).reshape(len(values), -1)
    rows = rows[np.isfinite(rows).all(axis=1)]
    count = len(rows)
    if not count:
        rows = np.full((1, rows.shape[1]), np.nan)
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    return {
        "min": rows.min(axis=0),
        "max": rows.max(axis=0),
        "mean": rows.mean(axis=0),
        "std": rows.std(axis=0),
        "count": np.array([count]),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


class PictureStats:
    """Statistics of frames that pass by, from how often each value occurs in each colour."""

    def __init__(self) -> None:
        self.frames = 0
        self._counts = np.zeros((3, 256), np.int64)

    def update(self, frame: np.ndarray) -> None:
        """Take in a frame, uint8 ``[H, W, 3]``; of a large one, every k-th pixel."""
        step = max(1, max(frame.shape[:2]) // SIDE)
        for counts, colour in zip(
            self._counts, np.moveaxis(frame[::step, ::step], -1, 0), strict=True
        ):
            counts += np.bincount(colour.reshape(-1), minlength=256)
        self.frames += 1

    def result(self) -> Stats:
        """Of at least one frame."""
        values = np.arange(256) / 255
        shares = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = shares @ values
        found = self._counts > 0
        stats = {
            "min": values[found.argmax(axis=1)],
            "max": values[255 - found[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1)),
        }
        reached = shares.cumsum(axis=1)
        for name, quantile in QUANTILES.items():
            stats[name] = values[(reached >= quantile - 1e-9).argmax(axis=1)]
        return {k: v.reshape(3, 1, 1) for k, v in stats.items()} | {
            "count": np.array([self.frames])
        }


def merge_stats(a: Stats, b: Stats) -> Stats:
    """Statistics of two parts together.

    As in LeRobot, a quantile is the mean of the parts' own, weighted by their counts. A part whose count
    is 0 is left out.
    """
    n_a, n_b = (float(part["count"].item()) for part in (a, b))
    if not n_a or not n_b:
        return a if n_a else b
    share = n_b / (n_a + n_b)
    difference = b["mean"] - a["mean"]
    merged = {k: a[k] + share * (b[k] - a[k]) for k in ("mean", *QUANTILES) if k in a and k in b}
    variance = (1 - share) * a["std"] ** 2 + share * b["std"] ** 2
    return {
        "min": np.minimum(a["min"], b["min"]),
        "max": np.maximum(a["max"], b["max"]),
        "std": np.sqrt(variance + share * (1 - share) * difference**2),
        "count": a["count"] + b["count"],
        **merged,
    }
