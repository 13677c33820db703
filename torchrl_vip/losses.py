"""Training objectives as TorchRL loss modules: VIP, and the rivals it is compared with.

Each reads a tensordict ``[B]`` with "pixels" ``[B, 4, 3, H, W]`` (o_0, o_t, o_{t+1}, o_g; uint8 or
floating point in [0, 1]), or "features" ``[B, 4, F]`` where only a head is trained. Where there is "decoy"
``[B]``, its rows above 0 are decoys instead: start, idle, end, goal, in the goal state where it is 2. It
writes ``loss_<name>``, of decoys ``loss_decoy``, ``loss_l1`` and ``loss_l2`` (penalties), all weighted:
the total is the sum of all ``loss_*``; and detached metrics. Under torch.distributed the loss is that of
all processes' batches together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.objectives import LossModule

from torchrl_vip.functional import (
    decoy_loss,
    renamed_negatives,
    tcn_loss,
    vip_loss,
    wrong_goal_loss,
)


class EmbeddingLoss(LossModule):
    """What the objectives share: one forward for all frames, and the penalties.

    Args:
        encoder: images ``[N, 3, H, W]`` (or features ``[N, F]``) to ``[N, D]``; trained as it is.
        l1, l2: weights of the mean norms of the embedding; 0.001 each in the official trainer.
        in_key: "pixels", or "features".
        decoy: weight of :func:`torchrl_vip.functional.decoy_loss`.
        decoy_margin: its margin.
        wrong_goals: weight of :func:`torchrl_vip.functional.wrong_goal_loss`, which reads "group" ``[B]``.
    """

    name: str

    def __init__(
        self,
        encoder: nn.Module,
        *,
        l1: float = 0.001,
        l2: float = 0.001,
        in_key: str = "pixels",
        decoy: float = 1.0,
        decoy_margin: float = 0.3,
        wrong_goals: float = 0.0,
    ):
        super().__init__()
        self.decoy, self.decoy_margin = decoy, decoy_margin
        self.wrong_goals = wrong_goals
        self.encoder = encoder
        self.l1 = l1
        self.l2 = l2
        self.in_keys = [in_key]

    def objective(self, z: Tensor, reward: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and detached metrics of embeddings ``[B, 4, D]``."""
        raise NotImplementedError

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        key = self.in_keys[0]
        frames = tensordict[key]
        wanted = {"pixels": "[B, 4, 3, H, W]", "features": "[B, 4, F]"}[key]
        if frames.ndim != wanted.count(",") + 1 or frames.shape[1] != 4:
            raise ValueError(
                f'{type(self).__name__} reads "{key}" of shape {wanted} (o_0, o_t, o_t+1, o_g); got '
                f"{tuple(frames.shape)}."
            )
        batch = frames.shape[0]
        reward = tensordict.get("reward", -1.0)
        if isinstance(reward, Tensor) and reward.shape == (batch, 1):
            reward = reward.squeeze(-1)  # TorchRL's own shape of a reward
        # One forward for all four frames of every sub-clip.
        z = all_batches(self.encoder(frames.flatten(0, 1)).float().unflatten(0, (batch, 4)))
        if isinstance(reward, Tensor):
            reward = all_batches(reward)
        losses, group = {}, all_batches(tensordict["group"]) if self.wrong_goals else None
        if (decoy := tensordict.get("decoy", None)) is not None:
            kind = all_batches(decoy)
            losses["loss_decoy"] = self.decoy * self._decoys(z[kind > 0], kind[kind > 0])
            z = z[kind == 0]
            reward = reward[kind == 0] if isinstance(reward, Tensor) else reward
            group = None if group is None else group[kind == 0]
        if group is not None:
            wrong = wrong_goal_loss(z[:, 0], z[:, 1], z[:, 3], group)
            losses["loss_wrong_goals"] = self.wrong_goals * wrong
        loss, metrics = self.objective(z, reward)
        norm = z.norm(dim=-1).mean()
        return TensorDict(
            {
                f"loss_{self.name}": loss,
                **losses,
                "loss_l1": self.l1 * z.abs().sum(-1).mean(),
                "loss_l2": self.l2 * norm,
                "embedding_norm": norm.detach(),
                **metrics,
            }
        )

    def _decoys(self, z: Tensor, kind: Tensor) -> Tensor:
        z_start, z_idle, z_end, z_goal = z.unbind(1)
        return decoy_loss(z_idle, z_start, z_end, z_goal, kind == 2, self.decoy_margin)


class VIPLoss(EmbeddingLoss):
    """Value-implicit pre-training of an encoder on sampled sub-clips.

    Reads also, where present, "reward" ``[B]`` or ``[B, 1]`` (-1, and 0 where o_t is the goal).

    Args:
        encoder: as in :class:`EmbeddingLoss`.
        gamma: discount in (0, 1).
        num_negatives: in-batch permutations; 3 in the official trainer, 0 for none.
        negatives, clamp: see :func:`torchrl_vip.functional.vip_loss`.
        time_contrast: weight of R3M's time-contrastive loss on the same sub-clips, which orders frames
            in time directly; 0 in the paper.
        generator: CPU generator of the permutations.
        **options: as of :class:`EmbeddingLoss`.
    """

    name = "vip"

    def __init__(
        self,
        encoder: nn.Module,
        *,
        gamma: float = 0.98,
        num_negatives: int = 3,
        negatives: str = "separate",
        clamp: bool = False,
        time_contrast: float = 0.0,
        generator: torch.Generator | None = None,
        **options: Any,
    ):
        super().__init__(encoder, **options)
        self.gamma = gamma
        self.num_negatives = num_negatives
        self.negatives = renamed_negatives(negatives)
        self.clamp = clamp
        self.time_contrast = time_contrast
        self.generator = generator

    def objective(self, z: Tensor, reward: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = vip_loss(
            *z.unbind(1),
            reward=reward,
            gamma=self.gamma,
            num_negatives=self.num_negatives,
            negatives=self.negatives,
            clamp=self.clamp,
            generator=self.generator,
        )
        if self.time_contrast:
            contrast = tcn_loss(z[:, 0], z[:, 1], z[:, 3])
            loss = loss + self.time_contrast * contrast
            metrics["time_contrast"] = contrast.detach()
        return loss, metrics


class TCNLoss(EmbeddingLoss):
    """Time-contrastive learning as in R3M, on (o_0, o_t, o_g); see ``functional.tcn_loss``."""

    name = "tcn"

    def objective(self, z: Tensor, reward: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return tcn_loss(z[:, 0], z[:, 1], z[:, 3]), {}


class TripletLoss(EmbeddingLoss):
    """Triplet margin loss: o_t lies nearer to each end than the other end does, by a margin.

    Args:
        margin: in embedding units.
        **options: as of :class:`EmbeddingLoss`.
    """

    name = "triplet"

    def __init__(self, encoder: nn.Module, *, margin: float = 1.0, **options: Any):
        super().__init__(encoder, **options)
        self.margin = margin

    def objective(self, z: Tensor, reward: float | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z_0, z_t, _, z_goal = z.unbind(1)
        from_start = F.triplet_margin_loss(z_0, z_t, z_goal, margin=self.margin)
        from_goal = F.triplet_margin_loss(z_goal, z_t, z_0, margin=self.margin)
        return (from_start + from_goal) / 2, {}


def all_batches(x: Tensor) -> Tensor:
    """Rows ``[B, ...]`` of every process, joined in order of rank; differentiable.

    Every process then computes the loss of the whole batch, and the gradient that flows back into
    its own rows is the sum of what all of them ask for: averaging parameter gradients over processes
    gives exactly the gradient that one process would have had.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    return _AllBatches.apply(x.contiguous())


class _AllBatches(torch.autograd.Function):
    """torch.distributed.nn.functional.all_gather does the same and is deprecated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
