"""A causal average of the distance to the goal, of every environment by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrl_vip.functional import check_smoothing
from torchrl_vip.transforms.keys import broadcast_rows


class AverageDistance:
    """Exponential moving average a of the distance d, which takes bumps off it.

    ``a_0 = d_0`` where an episode begins, then ``a_t = smoothing * a_{t-1} + (1 - smoothing) * d_t``. A new
    goal starts it again, at the last frame's distance to the new goal. What is kept are distances ``[*B]``
    and the goals they are to, so that a copy goes on by itself.

    Args:
        smoothing: in [0, 1); 0 is the distance itself.

    Raises:
        ValueError: ``smoothing`` is out of range.
    """

    def __init__(self, smoothing: float):
        check_smoothing(smoothing)
        self.smoothing = smoothing
        # After the last step, [*B]; NaN where the next step starts it. New tensors, never edited ones: a
        # shallow copy is a whole one.
        self._average: Tensor | None = None
        self._goal: Tensor | None = None

    def start(self, rows: Tensor | None = None) -> None:
        """An episode begins in these rows, bool ``[*B]``; None is all of them."""
        average = self._average
        if rows is None or average is None or rows.shape != average.shape[: rows.ndim]:
            self._average = None
        else:
            self._average = average.masked_fill(
                broadcast_rows(rows, average).to(average.device), torch.nan
            )

    def now(self, distance: Tensor, goal: Tensor) -> Tensor:
        """The average after the last step, ``[*B]``, or the distance where none has been made.

        Args:
            distance: of the last frame to ``goal``, ``[*B]``.
            goal: broadcasts to embeddings ``[*B, D]`` (``[*B, G, D]`` of sets).
        """
        average = self._average
        if average is None or self._goal is None or average.shape != distance.shape:
            return distance
        differ = _differ(goal, self._goal.to(goal.device), distance)
        average = average.to(distance.device).masked_fill(differ, torch.nan)
        return torch.where(average.isnan(), distance, average)

    def step(
        self, distance: Tensor, distance_next: Tensor, goal: Tensor, held: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """Go on by one step; returns the average before and after it, ``[*B]`` each.

        Args:
            distance: of the frame that the step starts from to ``goal``, ``[*B]``.
            distance_next: of the frame that it leads to.
            goal: as of :meth:`now`.
            held: rows, bool ``[*B]``, whose next frame is not known, or which made no step.
        """
        before = self.now(distance, goal)
        after = self.smoothing * before + (1 - self.smoothing) * distance_next
        for rows in held:
            after = torch.where(broadcast_rows(rows, after), before, after)
        self._average, self._goal = after.detach().clone(), goal.detach().clone()
        return before, after


def _differ(goal: Tensor, other: Tensor, distance: Tensor) -> Tensor:
    """Rows ``[*B]``, those of ``distance``, that have two different goals."""
    differ = (goal != other).any(-1)
    are_sets = differ.ndim > distance.ndim
    return (differ.any(-1) if are_sets else differ).expand(distance.shape)
