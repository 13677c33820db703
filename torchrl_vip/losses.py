"""Training objectives as TorchRL loss modules."""

from __future__ import annotations

import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.objectives import LossModule

from torchrl_vip.functional import vip_loss


class VIPLoss(LossModule):
    """Value-implicit pre-training of an encoder on sampled sub-clips.

    Reads a tensordict ``[B]`` with "pixels" ``[B, 4, 3, H, W]`` (o_0, o_t, o_{t+1}, o_g; uint8 or
    floating point in [0, 1]) and, where present, "reward" ``[B]`` or ``[B, 1]`` (-1, and 0 where
    o_t is the goal).
    Writes ``loss_vip``, ``loss_l1`` and ``loss_l2`` (penalties, already weighted: the total is the
    sum of all ``loss_*``) and detached metrics.

    Args:
        encoder: images ``[N, 3, H, W]`` to ``[N, D]``; trained as it is.
        gamma: discount in (0, 1).
        num_negatives: in-batch permutations; 3 in the official trainer, 0 for none.
        l1, l2: weights of the mean norms of the embedding; 0.001 each in the official trainer.
        generator: CPU generator of the permutations.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        gamma: float = 0.98,
        num_negatives: int = 3,
        l1: float = 0.001,
        l2: float = 0.001,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.gamma = gamma
        self.num_negatives = num_negatives
        self.l1 = l1
        self.l2 = l2
        self.generator = generator
        self.in_keys = ["pixels"]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        frames = tensordict["pixels"]
        if frames.ndim != 5 or frames.shape[1] != 4:
            raise ValueError(
                f'VIPLoss reads "pixels" of shape [B, 4, 3, H, W] (o_0, o_t, o_t+1, o_g); got '
                f"{tuple(frames.shape)}."
            )
        batch = frames.shape[0]
        reward = tensordict.get("reward", -1.0)
        if isinstance(reward, torch.Tensor) and reward.shape == (batch, 1):
            reward = reward.squeeze(-1)  # TorchRL's own shape of a reward
        # One forward for all four frames of every sub-clip.
        z = self.encoder(frames.flatten(0, 1)).float().unflatten(0, (batch, 4))
        loss, metrics = vip_loss(
            *z.unbind(1),
            reward=reward,
            gamma=self.gamma,
            num_negatives=self.num_negatives,
            generator=self.generator,
        )
        norm = z.norm(dim=-1).mean()
        return TensorDict(
            {
                "loss_vip": loss,
                "loss_l1": self.l1 * z.abs().sum(-1).mean(),
                "loss_l2": self.l2 * norm,
                "embedding_norm": norm.detach(),
                **metrics,
            }
        )
