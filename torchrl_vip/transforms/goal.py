"""The goals of a VIPRewardTransform: as given by the user or by a reset, and as written at every step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data.tensor_specs import Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from torchrl_vip.goals import Goals, embed_goal, read_goal
from torchrl_vip.transforms.source import Source

IMAGE_KEY = "goal_image"


class GoalState:
    """Which goal each environment has.

    Where it is asked, a ``source`` embeds goals, and ``environment`` is the one that the transform is part
    of; None in a replay buffer.

    Args:
        goal: in any of the forms that :class:`torchrl_vip.VIPRewardTransform` names; None waits for one.
            Files are opened now, so that a wrong path is an error here.
        key: of the goals' embeddings in the tensordict.
        nearest: keep the goals of a list apart, ``[..., G, D]``, instead of their mean.
        image_shape: of "goal_image" in one environment; None is the frames' own.
    """

    def __init__(
        self, goal: Any, *, key: NestedKey, nearest: bool, image_shape: Sequence[int] | None
    ):
        self.key = unravel_key(key)
        self.nearest = nearest
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.takes_images = goal is None or image_shape is not None
        # What the user gave, until an encoder is in reach.
        self._pending = None if goal is None else read_goal(goal)
        self._goals = Goals(as_sets=nearest)
        # Of an environment that takes any batch size (batch_locked=False): each size has its own.
        self._by_batch: dict[torch.Size, Goals] = {}

    # -- given by the user -------------------------------------------------------------------------

    @property
    def is_pending(self) -> bool:
        """Whether a goal waits for what embeds it."""
        return self._pending is not None

    def embed_pending(self, source: Source, environment: EnvBase | None) -> None:
        """Embed the goal that waits; RuntimeError where nothing in reach does."""
        if self._pending is not None:
            goal = embed_goal(self._pending, source, _batch_of(environment), as_set=self.nearest)
            self.set_all(goal)

    def embedding(self, environment: EnvBase | None) -> Tensor | None:
        """Of the environment's own batch: float32 ``[D]`` or ``[*B, D]`` (``[..., G, D]`` of sets)."""
        return self._of(_batch_of(environment), environment).embedding

    def set_all(self, embedding: Tensor) -> None:
        """One embedding for all environments, or one for each."""
        for goals in (self._goals, *self._by_batch.values()):
            goals.set(embedding)
        self._pending = None

    def set(self, goal: Any, source: Source, environment: EnvBase | None) -> None:
        """A new goal for all environments; it waits where there is no encoder yet."""
        goal = read_goal(goal)
        try:
            embedding = embed_goal(goal, source, _batch_of(environment), as_set=self.nearest)
        except RuntimeError:
            if environment is not None:
                raise
            self._pending, self._goals.embedding = goal, None
            return
        self.set_all(embedding)

    def set_some(
        self,
        goal: Any,
        source: Source,
        environment: EnvBase | None,
        env_ids: int | Sequence[int] | Tensor,
    ) -> None:
        """A new goal for some environments; see :meth:`torchrl_vip.VIPRewardTransform.set_goal`."""
        goal, batch = read_goal(goal), _batch_of(environment)
        order, rows = _chosen_rows(env_ids, batch)
        self.embed_pending(source, environment)
        embedding = embed_goal(goal, source, torch.Size([len(order)]), as_set=self.nearest)
        if embedding.ndim > (2 if self.nearest else 1):
            embedding = embedding[order.argsort().to(embedding.device)]
        self._of(batch, environment).set_rows(embedding, rows, batch)

    def _of(self, batch: torch.Size, environment: EnvBase | None) -> Goals:
        """The goals of the environments in a batch of this shape."""
        if environment is None or environment.batch_locked:
            return self._goals
        return self._by_batch.setdefault(batch, copy.copy(self._goals))

    # -- at resets and steps -----------------------------------------------------------------------

    def shown_by(self, environment: EnvBase | None) -> bool:
        """Whether the environment shows the goal of each episode by itself."""
        if environment is None or not self.takes_images:
            return False
        return IMAGE_KEY in environment.base_env.full_observation_spec.keys()

    def take(
        self,
        tensordict: TensorDictBase,
        rows: Tensor | None,
        batch: torch.Size,
        source: Source,
        environment: EnvBase | None,
    ) -> None:
        """Adopt the goals that ``env.reset(tensordict)`` brings, for the rows being reset.

        Raises:
            ValueError: there is no goal, or one of wrong shape or with values that are not finite.
        """
        self.embed_pending(source, environment)
        goals = self._of(batch, environment)
        every = torch.ones(batch, dtype=torch.bool) if rows is None else rows
        embedding = tensordict.get(self.key, None)
        if embedding is not None:
            goals.take(self._checked(embedding, goals, every, source), every)
        images = tensordict.get(IMAGE_KEY, None)
        if images is not None:
            known = source.knows_frames or self.image_shape is not None
            spec = self.image_spec(batch, source, environment) if known else None
            if spec is not None and images.shape != spec.shape:
                raise ValueError(
                    f"{IMAGE_KEY!r} of shape {tuple(images.shape)} at a reset; wanted {tuple(spec.shape)}. "
                    "set_goal(...) takes any size, goal_image_shape= declares another."
                )
            goals.take_images(images, every, lambda new: self._embed_images(new, source))
        if goals.embedding is None:
            raise ValueError(
                f"VIPRewardTransform has no goal: pass goal= at construction, call set_goal(...), or put "
                f"{IMAGE_KEY!r} or {self.key!r} in the tensordict of env.reset(...). (What a lambda makes, "
                "ParallelEnv resets before you can: give it a function or a partial.)"
            )

    def _checked(self, embedding: Tensor, goals: Goals, rows: Tensor, source: Source) -> Tensor:
        if self.nearest and embedding.ndim == rows.ndim + 1:  # one goal each
            count = 1 if goals.embedding is None else goals.embedding.shape[-2]
            embedding = embedding.unsqueeze(-2).expand(*rows.shape, count, -1)
        if source.dim is not None and embedding.shape[-1] != source.dim:
            raise ValueError(
                f"{self.key!r} of shape {tuple(embedding.shape)} at a reset; wanted [..., {source.dim}]."
            )
        if not embedding[rows.to(embedding.device)].isfinite().all():
            raise ValueError(f"{self.key!r} at a reset has values that are not finite.")
        return embedding

    def _embed_images(self, images: Tensor, source: Source) -> Tensor:
        """``[n, *image_shape]`` to ``[n, D]``; several cameras are in dimension 1."""
        try:
            z = source.goal_vip.embed(images)
        except (ValueError, TypeError) as error:
            raise type(error)(f"{IMAGE_KEY}: {error}") from error
        z = z.flatten(1)  # cameras of one environment joined
        return z.unsqueeze(-2) if self.nearest else z

    def of_step(
        self, tensordict: TensorDictBase, batch: torch.Size, source: Source, environment: EnvBase
    ) -> tuple[Tensor, bool]:
        """The goal of this step, ``[D]`` or ``[*B, D]``, and whether it is the one held here.

        An environment without a state of its own takes rows that carry goals of their own.
        """
        self.embed_pending(source, environment)
        goals, carried = self._of(batch, environment), tensordict.get(self.key, None)
        if goals.embedding is None:
            # The tensordict was reset by another transform.
            if carried is None:
                raise ValueError("VIPRewardTransform has no goal: call set_goal(...) or reset.")
            goals.embedding = carried
        if carried is None or environment.batch_locked:
            return goals.embedding, True
        goal = goals.where_carried(carried, batch)
        return goal, goal is goals.embedding

    def write(
        self,
        tensordict: TensorDictBase,
        environment: EnvBase | None,
        rows: Tensor | None = None,
    ) -> None:
        """Write the goal of every environment; ``rows`` are those that will have it, None all."""
        batch, device = tensordict.batch_size, tensordict.device
        goals = self._of(batch, environment)
        tensordict.set(self.key, goals.write(batch, device, rows))

    def differs(self, tensordict: TensorDictBase, environment: EnvBase | None) -> bool:
        """Whether the tensordict holds other goals than these under our key."""
        goal = self._of(tensordict.batch_size, environment).embedding
        other = tensordict.get(self.key, None)
        if goal is None or other is None:
            return False
        if other.shape[-1] != goal.shape[-1] or other.ndim < goal.ndim:
            return True
        return bool((other != goal.to(other.device)).any())

    def write_images(
        self,
        tensordict: TensorDictBase,
        source: Source,
        environment: EnvBase | None,
        rows: Tensor | None = None,
    ) -> None:
        """Write the goal image of every environment, where the state spec declares one."""
        if not self.takes_images or self.shown_by(environment):
            return
        goals = self._of(tensordict.batch_size, environment)
        if goals.images is None:
            spec = self.image_spec(tensordict.batch_size, source, environment)
            goals.images = None if spec is None else spec.zero()
        if goals.images is not None:
            tensordict.set(IMAGE_KEY, goals.write_images(tensordict.device, rows))

    # -- specs -------------------------------------------------------------------------------------

    def spec(self, like: Composite, source: Source, environment: EnvBase | None) -> Unbounded:
        """Of the goals' embeddings, ``[*B, D]``."""
        goal = self.embedding(environment)
        count = (1 if goal is None else goal.shape[-2],) if self.nearest else ()
        shape = (*like.shape, *count, source.dim)
        return Unbounded(shape=shape, dtype=torch.float32, device=like.device)

    def image_spec(
        self, batch: torch.Size, source: Source, environment: EnvBase | None
    ) -> TensorSpec | None:
        """Of one goal image per environment: the frames' own, unless a shape was declared; None where the
        environment shows its goal, or nothing embeds images."""
        if environment is None or self.shown_by(environment):
            return None
        try:
            cameras = source.cameras() or source.goal_vip.cameras
        except RuntimeError:  # embedded in the workers: only goal embeddings work here
            return None
        frames = environment.base_env.full_observation_spec.get(cameras[0], None)
        shape = self.image_shape
        if shape is None and frames is None:
            return None
        if shape is None:
            shape = tuple(frames.shape[-3:])
            count = len(source.cameras())
            shape = (count, *shape) if count > 1 else shape
        dtype = torch.uint8 if frames is None else frames.dtype
        return Unbounded(shape=(*batch, *shape), dtype=dtype, device=environment.device)

    def clone(self) -> GoalState:
        """The same goals, which go ways of their own from now on."""
        clone = copy.copy(self)
        clone._goals = copy.copy(self._goals)
        clone._by_batch = {batch: copy.copy(goals) for batch, goals in self._by_batch.items()}
        return clone


def _batch_of(environment: EnvBase | None) -> torch.Size:
    return torch.Size([]) if environment is None else environment.batch_size


def _chosen_rows(env_ids: int | Sequence[int] | Tensor, batch: torch.Size) -> tuple[Tensor, Tensor]:
    """The numbers of the environments that are named, in that order, and their rows, bool ``[*B]``."""
    if not batch:
        raise ValueError("env_ids= needs an environment with a batch dimension.")
    numbers = torch.arange(batch.numel()).reshape(batch)
    chosen = torch.as_tensor(env_ids).cpu()
    if not chosen.numel():  # of an empty list the dtype is float
        chosen = chosen.long()
    if chosen.dtype == torch.bool and chosen.numel() == batch.numel():
        chosen = chosen.reshape(batch)  # such as "done", which has one dimension more
    try:
        order = numbers[chosen].flatten()
    except IndexError as error:
        raise ValueError(f"env_ids={env_ids} for environments {list(batch)}: {error}") from error
    rows = torch.zeros(batch.numel(), dtype=torch.bool)
    rows[order] = True
    if len(order) != rows.sum():
        raise ValueError(f"env_ids={env_ids} names an environment twice.")
    return order, rows.reshape(batch)
