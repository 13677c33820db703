"""Where the embedding that is compared with the goal comes from, and what embeds a goal image.

A source has ``keys`` of embeddings, ``dim``, the size D of all of them together (None where nothing tells
yet), and reads them as one ``[*B, D]``. :func:`find_source` chooses it when specs are made and at resets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data.tensor_specs import Composite
from torchrl.envs.transforms import Transform

from torchrl_vip.transforms.keys import next_key
from torchrl_vip.transforms.placement import environment_of, transforms_before
from torchrl_vip.transforms.vip import VIPTransform


class Written:
    """Embeddings that stand in the tensordict: a VIPTransform before, or one in the workers, wrote them.

    Args:
        keys: of the embeddings.
        dim: see the module.
        goal_vip: embeds goal images; None where there is none in reach.
        cameras: of ``goal_vip`` whose embeddings stand under ``keys``, in their order; None where it
            embeds goals only, and may not know the cameras.
        reason: why there is no ``goal_vip``.
    """

    def __init__(
        self,
        keys: list[NestedKey],
        dim: int | None,
        goal_vip: VIPTransform | None = None,
        cameras: list[NestedKey] | None = None,
        reason: str = "",
    ):
        self.keys, self.dim = keys, dim
        self._goal_vip, self._cameras, self._reason = goal_vip, cameras, reason
        # Of an encoder for goals alone the size of the frames is not known.
        self.knows_frames = goal_vip is None or cameras is not None

    @property
    def goal_vip(self) -> VIPTransform:
        """The VIPTransform that embeds goal images.

        Raises:
            RuntimeError: there is none in reach.
        """
        if self._goal_vip is None:
            raise RuntimeError(self._reason)
        return self._goal_vip

    def cameras(self, goal: Any = None) -> list[NestedKey]:
        """Keys of the cameras whose embeddings are compared; empty where no encoder is in reach."""
        if self._goal_vip is None:
            return []
        if self._cameras is not None:
            return self._cameras
        given = list(goal) if isinstance(goal, Mapping) else self.keys[:1]
        known = [keys for keys in (self._goal_vip.cameras, self.keys) if set(keys) == set(given)]
        return known[0] if known else given

    def read(self, tensordict: TensorDictBase, *, following: bool = False) -> Tensor:
        """The embedding ``[*B, D]`` of this time step, or of the one under "next"; KeyError without one."""
        return _read(tensordict, self.keys, following)

    def reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return tensordict_reset

    def step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict

    def observation_spec(self, spec: Composite) -> Composite:
        for key in self.keys:
            if spec.get(key, None) is None:
                raise KeyError(absent(key, spec))
        return spec.clone()


class OwnFrames:
    """Frames that are embedded here, by a VIPTransform of our own, before they are read.

    Args:
        vip: the VIPTransform.
    """

    knows_frames = True

    def __init__(self, vip: VIPTransform):
        self.goal_vip = vip
        self.keys = vip.embedding_keys
        self.dim: int | None = len(vip.cameras) * vip.dim

    def cameras(self, goal: Any = None) -> list[NestedKey]:
        return self.goal_vip.cameras

    def read(self, tensordict: TensorDictBase, *, following: bool = False) -> Tensor:
        return _read(tensordict, self.keys, following)

    def reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self.goal_vip.embed_reset(tensordict, tensordict_reset)

    def step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        return self.goal_vip.embed_step(tensordict, next_tensordict)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self.goal_vip.forward(tensordict)

    def observation_spec(self, spec: Composite) -> Composite:
        return self.goal_vip.transform_observation_spec(spec)


Source = Written | OwnFrames


def _read(tensordict: TensorDictBase, keys: list[NestedKey], following: bool) -> Tensor:
    keys = [next_key(key) for key in keys] if following else keys
    parts = []
    for key in keys:
        parts.append(tensordict.get(key, None))
        if parts[-1] is None:
            raise KeyError(absent(key, tensordict))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def find_source(
    transform: Transform, vip: VIPTransform | None, rows: TensorDictBase | None = None
) -> Source:
    """The source of a transform's embeddings, at the place where it is now.

    Args:
        transform: reads its ``in_keys``.
        vip: its own VIPTransform, if it was given an encoder.
        rows: a sample of a replay buffer, where there is no environment: it shows whether ``in_keys`` are
            frames.

    Raises:
        KeyError: the environment has no such observation.
    """
    keys, environment = list(transform.in_keys), environment_of(transform)
    if vip is None:
        try:
            vip = _vip_before(transform)
        except RuntimeError as error:
            dim = (
                None if environment is None else _size(transform.parent.full_observation_spec, keys)
            )
            return Written(keys, dim, reason=str(error))
        cameras = [c for key in keys for c in vip.cameras if vip.embedding_key(c) == key]
        return Written(keys, len(cameras) * vip.dim, vip, cameras)
    if environment is None:
        frames = rows is not None and _are_frames(rows.get(keys[0], None), rows.batch_dims)
        return OwnFrames(vip) if frames else Written(keys, vip.dim, vip)
    spec = transform.parent.full_observation_spec
    if spec.get(keys[0], None) is None:
        raise KeyError(absent(keys[0], spec))
    if _are_frames(spec[keys[0]], len(transform.parent.batch_size)):
        return OwnFrames(vip)
    return Written(keys, _size(spec, keys), vip)


def _vip_before(transform: Transform) -> VIPTransform:
    """The VIPTransform before this one that writes its ``in_keys``.

    Raises:
        RuntimeError: there is none, or its embeddings are changed on the way.
    """
    keys, found = set(transform.in_keys), None
    for one in transforms_before(transform):
        if isinstance(one, VIPTransform) and keys <= set(one.out_keys):
            found = one
        elif found is not None and keys & set(one.out_keys or ()):
            raise RuntimeError(
                f"{type(one).__name__} changes {transform.in_keys} after the VIPTransform, so that a goal "
                f"image's embedding is no longer one of these: put it behind {type(transform).__name__}."
            )
    if found is not None:
        return found
    alone = environment_of(transform) is None
    raise RuntimeError(
        f"{type(transform).__name__} cannot embed a goal image: no VIPTransform that writes "
        f"{transform.in_keys} stands before it"
        + (" (it is part of no environment, Compose or replay buffer yet)" if alone else "")
        + ". Where the VIPTransform sits inside the workers or there is none, as in a replay buffer of "
        "stored embeddings, give the goal as an embedding, or pass encoder=."
    )


def _are_frames(leaf: Any, batch_dims: int) -> bool:
    """Whether a tensor or spec has three dimensions more than the batch."""
    return leaf is not None and len(leaf.shape) - batch_dims >= 3


def _size(spec: Composite, keys: Sequence[NestedKey]) -> int:
    for key in keys:
        if spec.get(key, None) is None:
            raise KeyError(absent(key, spec))
    return sum(spec[key].shape[-1] for key in keys)


def absent(key: NestedKey, tensordict: TensorDictBase | Composite) -> str:
    """What to say where the embedding under ``key`` is not there."""
    return (
        f"VIPRewardTransform found no {key!r}; there is "
        f"{sorted(map(str, tensordict.keys(True, True)))}. Put a VIPTransform before it, or pass "
        "encoder= and in_keys= of the frames."
    )
