"""Planning on a real simulator: sampled action sequences, run from its saved state, scored, mixed."""

from torchrl_vip.planning.mppi import (
    CEM,
    MPPI,
    Planner,
    filtered_noise,
    in_deviations,
    mppi_weights,
)
from torchrl_vip.planning.reading import GoalReading, read_goal
from torchrl_vip.planning.registration import FoundRobot, find_robot
from torchrl_vip.planning.rollout import Rollouts, last_frame, last_reward, rollout

__all__ = [
    "CEM",
    "MPPI",
    "FoundRobot",
    "GoalReading",
    "Planner",
    "Rollouts",
    "filtered_noise",
    "find_robot",
    "in_deviations",
    "last_frame",
    "last_reward",
    "mppi_weights",
    "read_goal",
    "rollout",
]
