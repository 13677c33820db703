"""Reward-weighted regression as a TorchRL loss module; cloning, TD3+BC and IQL are TorchRL's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from tensordict import TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, dispatch
from tensordict.utils import NestedKey
from torch import Tensor
from torchrl.objectives import BCLoss

from torchrl_vip.functional import (
    effective_sample_size,
    log_reward_weights,
    normalised_weights,
)


class RWRLoss(BCLoss):
    """Behaviour cloning in which an action counts as much as its reward says.

    The mean over a batch of w · l(π(o), a), with l the loss of :class:`torchrl.objectives.BCLoss` and w the
    weight of the step's reward R: exp(tau R), or exp(R / (temperature · std R)).
    Source: Peters & Schaal, ICML 2007; the VIP paper, section 5.3, where R is the embedding's reward of one
    step.

    Args:
        actor_network: deterministic or stochastic, see :class:`torchrl.objectives.BCLoss`.
        tau, temperature: see :func:`torchrl_vip.functional.log_reward_weights`; exactly one of them.
        clip: see :func:`torchrl_vip.functional.normalised_weights`.
        loss_function: see :class:`torchrl.objectives.BCLoss`.

    Writes "loss_rwr", and without gradient "effective_sample_size" (a share of the batch) and
    "largest_weight", all scalars.

    Before training, :meth:`fit` shows it all rewards: the weights then have mean 1 over the dataset. Without
    it each batch is normalised by itself.

    Example:
        >>> loss = RWRLoss(actor, temperature=1.0)
        >>> loss.fit(steps["next", "reward"])
        >>> loss(buffer.sample())["loss_rwr"].backward()
    """

    @dataclass
    class _AcceptedKeys(BCLoss._AcceptedKeys):
        """Keys in the tensordict: "action", and "reward" ``[*B, 1]``."""

        reward: NestedKey = ("next", "reward")

    tensor_keys: _AcceptedKeys
    target_actor_network_params: TensorDictParams  # BCLoss forgets to announce it
    default_keys = _AcceptedKeys
    out_keys = ["loss_rwr", "effective_sample_size", "largest_weight"]

    def __init__(
        self,
        actor_network: TensorDictModule,
        *,
        tau: float | None = None,
        temperature: float | None = None,
        clip: float | None = None,
        loss_function: str | None = None,
    ) -> None:
        super().__init__(actor_network, loss_function=loss_function, reduction="none")
        self.tau, self.temperature, self.clip = tau, temperature, clip
        self._log_weights(torch.arange(2.0))  # refuses now what it would refuse at the first batch
        normalised_weights(torch.zeros(1), clip)
        self.register_buffer("scale", torch.tensor(torch.nan))  # of R; these three by fit
        self.register_buffer("log_mean", torch.tensor(0.0))  # of the weights
        self.register_buffer("mean_clipped", torch.tensor(1.0))  # and what clipping leaves of it

    def _log_weights(self, reward: Tensor) -> Tensor:
        return log_reward_weights(reward, tau=self.tau, temperature=self.temperature)

    def fit(self, reward: Tensor) -> Tensor:
        """Take the rewards' deviation and the weights' mean from the whole dataset.

        Args:
            reward: of all steps, ``[N]`` or ``[N, 1]``.

        Returns:
            The weights ``[N]``, of mean 1.

        Raises:
            ValueError: rewards that are not finite; all alike, for a temperature.
        """
        reward = reward.flatten().double()
        if not reward.isfinite().all():
            raise ValueError(
                f"{(~reward.isfinite()).sum()} of {len(reward)} rewards are not finite: leave these "
                "steps out."
            )
        log_weights = self._log_weights(reward)
        deviation = reward.std(correction=0)
        self.scale.fill_(
            self.tau if self.temperature is None else 1 / (self.temperature * deviation)
        )
        self.log_mean.fill_(torch.logsumexp(log_weights, 0) - math.log(len(reward)))
        self.mean_clipped.fill_(1.0)
        self.mean_clipped.fill_(self.weights(reward).mean())
        return self.weights(reward).float()

    def weights(self, reward: Tensor) -> Tensor:
        """Weights ``[N]`` of rewards ``[N]``."""
        if self.scale.isnan():
            return normalised_weights(self._log_weights(reward), self.clip)
        weights = (self.scale * reward - self.log_mean).exp()
        return weights.clamp_max(self.clip or torch.inf) / self.mean_clipped

    def _set_in_keys(self) -> None:
        super()._set_in_keys()
        self._in_keys.append(self.tensor_keys.reward)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The loss of a batch ``[*B]``."""
        loss = super().forward(tensordict)["loss_bc"]
        loss = loss.reshape(tensordict.numel(), -1).mean(-1)
        weights = self.weights(tensordict[self.tensor_keys.reward].reshape(-1))
        return TensorDict(
            {
                "loss_rwr": (weights * loss).mean(),
                "effective_sample_size": effective_sample_size(weights) / len(weights),
                "largest_weight": weights.max(),
            }
        )
