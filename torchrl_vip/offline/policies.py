"""Policies and critics of offline learning: small MLPs of the embedding and proprioception."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.modules import (
    MLP,
    IndependentNormal,
    NormalParamExtractor,
    ProbabilisticActor,
    TanhModule,
    ValueOperator,
)

CELLS = (256, 256)  # the paper's
QUIET = 1e-2  # what varies by less is not blown up
NOISE = 0.2  # of an actor's inputs in training, in their deviations


class Standardised(nn.Module):
    """An MLP of inputs ``[*B, D_i]``, joined, of mean 0 over the dataset.

    The last inputs have deviation 1 each. An embedding before them is scaled as a whole, and weighs as much
    as all of them together: of its hundreds of numbers most are noise, and each with deviation 1 they drown
    proprioception. On demonstrations that were held out this, and noise on the inputs, took a third off the
    error of cloned actions (docs/notebook/2026-11-30-offline.md).

    Args:
        inputs: of the dataset, ``[N, D_i]``: the embedding and others, or one alone.
        noise: deviation of the Gaussian noise that is added in training, in parts of the inputs'.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        inputs: Sequence[Tensor],
        out: int,
        cells: Sequence[int] = CELLS,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        joined = torch.cat([x.flatten(1) for x in inputs], 1)
        deviation = joined.std(0, correction=0)
        others = joined.shape[1] - inputs[0].shape[-1]
        if others:
            whole = deviation[: inputs[0].shape[-1]]
            whole.fill_(whole.norm() / others**0.5)
        self.register_buffer("mean", joined.mean(0))
        self.register_buffer("deviation", deviation.clamp_min(QUIET))
        self.mlp = MLP(joined.shape[1], out, num_cells=list(cells), activation_class=nn.ReLU)
        self.noise = noise

    def forward(self, *inputs: Tensor) -> Tensor:
        x = (torch.cat(inputs, -1) - self.mean) / self.deviation
        if self.training and self.noise:
            x = x + self.noise * torch.randn_like(x)
        return self.mlp(x)


def observed(steps: TensorDict) -> list[NestedKey]:
    """What a policy reads of these steps: "vip_vec", and "state" where there is one."""
    return [key for key in ("vip_vec", "state") if key in steps.keys()]


def action_spec(steps: TensorDict) -> Bounded:
    """Bounds of the actions: [-1, 1], or what was seen where that goes beyond."""
    action = steps["action"]
    low, high = action.amin(0).clamp_max(-1.0), action.amax(0).clamp_min(1.0)
    return Bounded(low, high, low.shape)


def make_actor(
    steps: TensorDict, *, stochastic: bool = False, noise: float = NOISE
) -> TensorDictModule:
    """A policy from :func:`observed` keys to "action" ``[*B, A]``: an MLP [256, 256], as the paper's.

    Args:
        steps: of the dataset: shapes, mean and deviation of the inputs, bounds of the actions.
        stochastic: a normal distribution around the same bounded mean, as IQL wants; it plays the mean where
            exploration is deterministic. Not a tanh-normal: demonstrations lie on the bounds, where that has
            no density.
        noise: of the inputs in training, see :class:`Standardised`.
    """
    keys, spec = observed(steps), action_spec(steps)
    inputs, size = [steps[key] for key in keys], steps["action"].shape[-1]
    if stochastic:
        module = TensorDictModule(Standardised(inputs, 2 * size, noise=noise), keys, ["params"])
        split = TensorDictModule(NormalParamExtractor(), ["params"], ["loc", "scale"])
        bounds = TanhModule(in_keys=["loc"], spec=spec)
        return ProbabilisticActor(
            TensorDictSequential(module, split, bounds),
            ["loc", "scale"],
            distribution_class=IndependentNormal,
        )
    module = TensorDictModule(Standardised(inputs, size, noise=noise), keys, ["action"])
    return TensorDictSequential(module, TanhModule(in_keys=["action"], spec=spec))


def make_critic(steps: TensorDict) -> ValueOperator:
    """Q from the observed keys and "action" to "state_action_value" ``[*B, 1]``."""
    keys = [*observed(steps), "action"]
    return ValueOperator(Standardised([steps[key] for key in keys], 1), keys)


def make_value(steps: TensorDict) -> ValueOperator:
    """V from the observed keys to "state_value" ``[*B, 1]``."""
    keys = observed(steps)
    return ValueOperator(Standardised([steps[key] for key in keys], 1), keys)
