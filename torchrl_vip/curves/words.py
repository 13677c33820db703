"""What a curve says, in sentences for whoever sees one for the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torchrl_vip.curves.curve import Curve

ADVICE = "Try an image of the finished task from the same camera and scene."


def steps(curve: Curve) -> str:
    """How many steps lead towards the goal."""
    return (
        f"{curve.towards * 100:.0f} % of steps lead towards the goal, {curve.bumps * 100:.0f} % lead away "
        f"from it (bumps {curve.bumps:.2f})."
    )


def order(curve: Curve) -> str:
    """Whether the distance falls as time goes on."""
    if np.ptp(curve.distance) == 0:
        return f"The distance is the same in every frame: nothing to follow. {ADVICE}"
    order = curve.order
    said = f"(order {order:.2f}, 1 is best)"
    if order >= 0.8:
        return f"The distance falls as time goes on {said}."
    if order >= 0.5:
        return f"The distance mostly falls as time goes on {said}."
    if order >= 0.2:
        return (
            f"The distance follows time loosely {said}: a reward from this goal would be noisy for this "
            f"video. {ADVICE}"
        )
    if order > -0.2:
        return f"The distance hardly follows time {said}: this goal does not work for this video. {ADVICE}"
    return f"The distance grows with time {said}: the video leads away from this goal. {ADVICE}"


def way(curve: Curve) -> str:
    """How much nearer to the goal the last frame is than the first."""
    first, last = curve.distance[0], curve.distance[-1]
    numbers = f"(distance {first:.1f} in the first frame, {last:.1f} in the last)"
    if last > first:
        return f"It ends farther from the goal image than it began {numbers}."
    covered = curve.covered if first else 0.0
    return f"It comes {covered * 100:.0f} % of the way to the goal image {numbers}."
