"""Corrective noise: a hand that is off its way, and the action that brings it back.

A clone drifts: it comes to where no demonstration was, and nothing says what to do there. Where actions are
displacements the dataset itself says it. How a state answers to an action is fitted to all steps; had the
last action been off by n, the state would be off by n times that, and the action that makes up for it is n
less. Source of the idea: Ke et al., CCIL, ICLR 2024 (arXiv 2310.12972), with a learned model of the dynamics.

Whoever is off does not grasp yet: steps in which a gripper begins to open or close are left as they are.
"""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDict
from torch import Tensor

from torchrl_vip.offline.policies import observed

EXPLAINED = 0.5  # of the variance of some number's change, by an action that is a displacement
CHANGE = 0.1  # of an action's range: less from step to step is none
DECIDING = 3  # steps that are left as they are, from that on in which a gripper is told otherwise


class Corrections:
    """Random corrections of a dataset's actions, by how what is observed answers to them.

    An action is taken for a displacement where it explains half of the variance of how some number of the
    state changes, over all steps, and more than it explains of any number itself. Others, such as a gripper
    that is told how far to open, stay as they are. The embedding is moved along with the state, as a hand
    that is off is seen to be off.

    Args:
        steps: of :func:`torchrl_vip.offline.read_steps`.
        size: standard deviation of the noise, in parts of the largest displacement that was demonstrated.

    Attributes:
        displacements: which actions are corrected, bool ``[A]``.
        corrected: which steps are: all but those in which another action changes, and the two after these,
            bool ``[N]``.
        response: key -> what an observation changes by where an action is one more, ``[A, D]``; 0 for actions
            that are no displacements. By least squares over all steps.
    """

    def __init__(self, steps: TensorDict, size: float) -> None:
        action = steps["action"]
        self.low, self.high = action.amin(0), action.amax(0)
        self.displacements = torch.zeros(action.shape[1], dtype=torch.bool)
        self.response: dict[NestedKey, Tensor] = {}
        if "state" in steps.keys():
            now, then = steps["state"], steps["next", "state"]
            moves, sets = explained(action, then - now).amax(1), explained(action, then).amax(1)
            self.displacements = (moves > EXPLAINED) & (moves > sets)
        self.corrected = ~_deciding(action[:, ~self.displacements], steps["episode"])
        self.deviation = size * self.displacements * action.abs().amax(0)
        if self:
            centred = action - action.mean(0)
            for key in observed(steps):
                change = steps["next", key] - steps[key]
                answer = torch.linalg.lstsq(centred, change - change.mean(0), driver="gelsd")
                self.response[key] = answer.solution * self.displacements[:, None]

    def __bool__(self) -> bool:
        return bool(self.deviation.any())

    def apply(self, batch: TensorDict) -> None:
        """Move what a batch ``[B]`` observes by random actions' effect, and its actions against it; not where
        its "corrected" ``[B]`` is False."""
        noise = self.deviation * torch.randn_like(batch["action"]) * batch["corrected"][:, None]
        for key, response in self.response.items():
            batch[key] = batch[key] + noise @ response
        back = (batch["action"] - noise).clamp(self.low, self.high)
        batch["action"] = torch.where(self.displacements, back, batch["action"])


def _deciding(action: Tensor, episode: Tensor) -> Tensor:
    """Steps in which one of these actions ``[N, A]`` changes, and those after it, bool ``[N]``."""
    least = CHANGE * (action.amax(0) - action.amin(0))
    changed = ((action[1:] - action[:-1]).abs() > least).any(1) & (episode[1:] == episode[:-1])
    found = torch.zeros(len(action), dtype=torch.bool)
    for later in range(DECIDING):
        found[1 + later :] |= changed[: len(changed) - later]
    return found


def explained(action: Tensor, change: Tensor) -> Tensor:
    """Squared correlation of each action ``[N, A]`` with each number's change ``[N, S]``, ``[A, S]``; 0 of
    what never changes."""
    action, change = action - action.mean(0), change - change.mean(0)
    covariance = (action.T @ change).square()
    both = action.square().sum(0)[:, None] * change.square().sum(0)
    return torch.where(both > 0, covariance / both.clamp_min(1e-30), 0.0)
