"""Several attempts against one goal: which one came nearest?"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torchrl_vip.curves import Curve
from torchrl_vip.curves.curve import small
from torchrl_vip.demo import measuring
from torchrl_vip.demo.measuring import SMALL, Wish
from torchrl_vip.demo.uploads import Refused


class Attempt(NamedTuple):
    """A video, as its visitor calls it, and the folder of what is made of it."""

    folder: Path
    source: Path
    name: str


def compare(
    attempts: list[Attempt], goal: Path | int, goal_name: str, encoder: str, folder: Path
) -> dict[str, Any]:
    """Attempts in the order of how near each ended, as the page shows them.

    Args:
        goal: a picture, or the number of the attempt whose last frame is the goal. That one ends at the goal
            by definition: it has no rank.
        folder: where ``goal.jpg`` is written.

    Raises:
        Refused: no attempt can be read, or the goal cannot.
    """
    seen, refusals = [], []
    for number, attempt in enumerate(attempts):
        wish = Wish(attempt.folder, attempt.source, attempt.name, encoders=(encoder,))
        try:
            sampled = measuring.sample(attempt.source)
            measuring.embed(wish, sampled)
        except Refused as error:
            refusals.append(f"{attempt.name}: {error}")
            continue
        seen.append((number, attempt, sampled, measuring.load_embedding(wish, encoder)))
    if not seen:
        raise Refused(" ".join(refusals) or "No video was given; wanted two or more.")
    z_goal = _goal(goal, seen, encoder, folder)
    shown = []
    for number, attempt, sampled, z in seen:
        curve = Curve(z, z_goal)
        shown.append(
            {
                "name": attempt.name,
                "folder": attempt.folder.name,
                "last": f"frame_{len(z) - 1:04d}.jpg",
                "times": sampled.times.round(4).tolist(),
                "end": round(sampled.file.end, 4),
                "distance": curve.distance.round(4).tolist(),
                "order": round(curve.order, 2),
                "said": _said(curve) if number != goal else "Its own end is the goal.",
                "is_goal": number == goal,
            }
        )
    shown.sort(key=lambda one: (one["is_goal"], one["distance"][-1]))
    for rank, one in enumerate((s for s in shown if not s["is_goal"]), 1):
        one["rank"] = rank
    return {
        "attempts": shown,
        "verdict": verdict(shown),
        "goal_name": goal_name,
        "refusals": refusals,
        "note": "The order of the ends is what the encoder sees; where two are close, look at their last "
        "frames. The goal should be the end of another attempt, or a picture, of the same scene and camera.",
    }


def _goal(goal: Path | int, seen: list, encoder: str, folder: Path) -> np.ndarray:
    """The goal's embedding ``[D]``; its picture is written."""
    if isinstance(goal, Path):
        picture = measuring.read_picture(goal)
        measuring.write_picture(folder / "goal.jpg", small(picture, SMALL))
        return measuring.embed_picture(picture, encoder)
    for number, attempt, _, z in seen:
        if number == goal:
            last = attempt.folder / f"frame_{len(z) - 1:04d}.jpg"
            (folder / "goal.jpg").write_bytes(last.read_bytes())
            return z[-1]
    raise Refused("The attempt whose end is the goal cannot be read; choose another goal.")


def _said(curve: Curve) -> str:
    """In short what :meth:`Curve.sentences` say."""
    if curve.distance[-1] >= curve.distance[0]:
        return f"Ends farther from the goal than it began; {curve.towards:.0%} of steps lead towards it."
    return f"Covers {curve.covered:.0%} of the way; {curve.towards:.0%} of steps lead towards the goal."


def verdict(shown: list[dict[str, Any]]) -> str:
    """Which attempt ended nearest, of ``shown`` in the order of their ranks."""
    ranked = [one for one in shown if not one["is_goal"]]
    if not ranked:
        return "Only the goal itself was given: add the attempts to compare."
    ends = [one["distance"][-1] for one in ranked]
    first = f"{ranked[0]['name']} ended nearest to the goal (distance {ends[0]:.1f})"
    if len(ranked) == 1:
        return first + "."
    if ends[1] < 1.15 * ends[0]:
        return f"{first}, but {ranked[1]['name']} is close behind ({ends[1]:.1f}): look at both."
    return f"{first}; the next is {ranked[1]['name']} ({ends[1]:.1f})."
