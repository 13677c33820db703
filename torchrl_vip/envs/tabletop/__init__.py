"""Four tasks at a table, after the real robot's of the VIP paper: close-drawer (articulated), push-bottle
(transparent), pickplace-melon (soft) and fold-towel (cloth).

Shapes: pixels uint8 [H, W, 3]; state float32 [8] = hand xyz, where the hand is pulled to xyz, the fingers'
opening and what they are told (m); full_state float32 [21] = state and 13 numbers of the thing (see
``seen`` in :mod:`torchrl_vip.envs.tabletop.things`; 0 where it has fewer); action float32 [4] in [-1, 1] =
displacement of the hand's target (1 = 3 cm, by inverse kinematics) and the fingers' opening (-1 closed, 1
open by 8 cm). An action lasts 40 ms (25 Hz), an episode 50 of them. The hand points down.

Solved is: the drawer open by less than 1 cm; the bottle's middle in the zone (5 cm), its axis within 10
degrees of upright; the melon's middle within 5 cm of the bowl's and low in it, let go of and at rest; the
towel's corner within 5 cm of the one opposite, let go of and at rest.

Held by a constraint: closed fingers that touch melon or towel are tied to the vertices between their tips.
They lose them when they open, touch no more, or are pulled by more than 30 N (melon) or 15 N (towel).

The Franka is gymnasium-robotics' (from vikashplus/franka, Apache-2.0), read from the installed package:
``pip install "torchrl-vip[robotics]"``. All else is made here.
"""

from __future__ import annotations

from torchrl_vip.envs import environment
from torchrl_vip.envs.tabletop.simulator import TASKS, TabletopSim

SCRIPTED_TASKS: tuple[str, ...] = tuple(sorted(TASKS))

HELD_OUT_TASKS: tuple[str, ...] = SCRIPTED_TASKS
"""All of them: nothing is trained on them."""


def list_tasks() -> list[str]:
    """Names of the tasks, e.g. ``"fold-towel"``."""
    return sorted(TASKS)


SIMULATOR = TabletopSim
make_env = environment.for_suite(environment.make_env, SIMULATOR)
goal_image = environment.for_suite(environment.goal_image, SIMULATOR)
