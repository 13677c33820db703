"""GoalTransform: a goal for each environment, from whatever it is given as."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data.tensor_specs import Composite, Unbounded
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import Compose, Transform

from torchrl_vip.functional import to_chw
from torchrl_vip.goals import Goals, is_image, read_image
from torchrl_vip.transforms.vip import EncoderLike, VIPTransform

_ONE = torch.Size([])  # batch shape of a goal that is not stacked


class GoalTransform(Transform):
    """Holds the embedding of a goal for each environment: what :class:`VIPRewardTransform` measures to.

    A goal is given in any of the forms that :class:`VIPRewardTransform` names, is embedded as soon as an
    encoder is in reach, and is written into the tensordict at resets and steps. Subclasses take goals in
    with ``_take_goals``, read ``self._goals.embedding`` and give them out with ``_write_goal``.

    Args:
        goal: see :class:`VIPRewardTransform`, as all arguments here.
        in_keys: of the embedding(s), or of frames.
        encoder: embeds frames where in_keys name frames, only goals where they name embeddings.
        nearest: keep the goals of a list apart, ``[..., G, D]``, instead of their mean.
        goal_image_shape: of "goal_image" in one environment.
        goal_key: of the goals' embeddings in the tensordict.
    """

    goal_image_key = "goal_image"

    def __init__(
        self,
        goal: Any,
        in_keys: list[NestedKey],
        *,
        encoder: EncoderLike | VIPTransform,
        nearest: bool,
        goal_image_shape: Sequence[int] | None,
        goal_key: NestedKey,
    ):
        super().__init__(in_keys=in_keys)
        self.goal_key = unravel_key(goal_key)
        if encoder is not None and not isinstance(encoder, VIPTransform):
            encoder = VIPTransform(encoder, in_keys=self.in_keys, del_keys=False)
        # Not registered, like a VIPTransform's own encoder: it is frozen.
        self.__dict__["embedder"] = encoder
        self.nearest = nearest
        self.goal_image_shape = None if goal_image_shape is None else tuple(goal_image_shape)
        self.wants_goal_image = goal is None or goal_image_shape is not None
        # What the user gave, until an encoder is in reach; files are opened now, so that a wrong
        # path is an error here.
        self._pending = None if goal is None else _read_goal(goal)
        self._goals = Goals(as_sets=nearest)
        # Of an environment that takes any batch size (batch_locked=False): each size has its own.
        self._sized: dict[torch.Size, Goals] = {}

    # -- given by the user -------------------------------------------------------------------------

    @property
    def goal(self) -> Tensor | None:
        """Goal embedding(s), float32 ``[D]`` or ``[*B, D]`` (``[..., G, D]`` with "nearest")."""
        self._resolve()
        return self._goals_of(self._batch_size()).embedding

    def set_goal(self, goal: Any, env_ids: int | Sequence[int] | Tensor | None = None) -> None:
        """Give a new goal, from the next step on.

        Args:
            goal: as at construction.
            env_ids: indices or a mask of the environments that get it, in the order in which goals are
                stacked; None is all of them, of every batch size where the environment takes any.

        Raises:
            ValueError: as the class; or ``env_ids`` without an environment, twice or beyond them.
        """
        goal = _read_goal(goal)
        if env_ids is None:
            try:
                embedding = self._embed_goal(goal, self._batch_size())
            except RuntimeError:  # no encoder in reach yet: keep the goal until there is one
                if self._safe_container() is not None:
                    raise
                self._pending, self._goals.embedding = goal, None
                return
            self._set_all(embedding)
            return
        batch = self._batch_size()
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
            raise ValueError(
                f"env_ids={env_ids} for environments {list(batch)}: {error}"
            ) from error
        rows = torch.zeros(batch.numel(), dtype=torch.bool)
        rows[order] = True
        if len(order) != rows.sum():
            raise ValueError(f"env_ids={env_ids} names an environment twice.")
        self._resolve()
        embedding = self._embed_goal(goal, batch_in_front=torch.Size([len(order)]))
        if embedding.ndim > (2 if self.nearest else 1):
            embedding = embedding[order.argsort().to(embedding.device)]
        self._goals_of(batch).set_rows(embedding, rows.reshape(batch), batch)

    def _resolve(self) -> None:
        if self._pending is not None:
            self._set_all(self._embed_goal(self._pending, self._batch_size()))

    def _set_all(self, embedding: Tensor) -> None:
        for goals in (self._goals, *self._sized.values()):
            goals.set(embedding)
        self._pending = None

    def _goals_of(self, batch: torch.Size) -> Goals:
        """Those of the environments in a batch of this shape."""
        container = self._safe_container()
        if container is None or container.batch_locked:
            return self._goals
        return self._sized.setdefault(batch, copy.copy(self._goals))

    def _batch_size(self) -> torch.Size:
        container = self._safe_container()
        return torch.Size([]) if container is None else container.batch_size

    def _embed_goal(self, goal: Any, batch_in_front: torch.Size = _ONE) -> Tensor:
        """A goal as given to float32 ``[D]`` or ``[*B, D]``; ``[..., G, D]`` with "nearest"."""
        if isinstance(goal, list | tuple):
            if not goal:
                raise ValueError("an empty list of goals; wanted at least one.")
            if any(isinstance(one, list | tuple) for one in goal):
                raise ValueError("a list of lists of goals; wanted a list of images or embeddings.")
            each = torch.stack([self._embed_one(g, torch.Size([])) for g in goal], -2)
            return each if self.nearest else each.mean(-2)
        one = self._embed_one(goal, batch_in_front)
        return one.unsqueeze(-2) if self.nearest else one

    def _embed_one(self, goal: Any, batch: torch.Size) -> Tensor:
        cameras = self._goal_cameras(goal)
        if isinstance(goal, Mapping):
            missing = [c for c in cameras if c not in goal]
            if missing:
                raise ValueError(f"the goal has no image of camera {missing}; got {list(goal)}.")
            return torch.cat([self._embed_one_image(goal[c], batch) for c in cameras], -1)
        dim = self._dim()
        if is_image(goal, dim, batch):
            if len(cameras) > 1:
                raise ValueError(
                    f"one goal image for {len(cameras)} cameras: pass a dict {{key: image}} with "
                    f"the keys {cameras}."
                )
            return self._embed_one_image(goal, batch)
        if dim is not None and goal.shape[-1] != dim:
            raise ValueError(
                f"goal embedding of shape {tuple(goal.shape)}; wanted [..., {dim}], what the encoder "
                "gives."
            )
        if goal.shape[:-1] not in (torch.Size([]), batch):
            each = f", or {[*batch, goal.shape[-1]]} for one per environment" if batch else ""
            raise ValueError(
                f"goal embeddings of shape {tuple(goal.shape)}; wanted [{goal.shape[-1]}]{each}. A set "
                "of goals is a list, the same for all environments."
            )
        if not goal.isfinite().all():
            raise ValueError("the goal embedding has values that are not finite.")
        return goal.detach().to(torch.float32, copy=True)

    def _embed_one_image(self, image: Tensor, batch: torch.Size) -> Tensor:
        embedder = self._find_embedder()
        try:
            try:
                image = to_chw(image)  # a file's layout need not be the frames'
            except ValueError:
                image = to_chw(image, embedder.channel_dim)
            lead = image.shape[:-3]
            if lead not in (torch.Size([]), batch):
                raise ValueError(
                    f"images stacked as {tuple(lead)} for an environment of batch shape "
                    f"{tuple(batch)}. A set of goals is a list"
                )
            return embedder.encoder(image, channel_dim=-3).detach()
        except (ValueError, TypeError) as error:
            raise type(error)(f"goal image: {error}") from error

    # -- in reach: the encoder, its cameras, the embedding -----------------------------------------

    def _safe_container(self):
        try:
            return self.container
        except ValueError:  # TorchRL raises where the container is a replay buffer
            return None

    def _find_embedder(self) -> VIPTransform:
        """The VIPTransform that embeds goals: our own, or the one before us that feeds our in_keys."""
        if self.embedder is not None:
            return self.embedder
        container, found = self._safe_container(), None
        for transform in before(self, chain(container)):
            if isinstance(transform, VIPTransform) and set(self.in_keys) <= set(transform.out_keys):
                found = transform
            elif found is not None and set(self.in_keys) & set(transform.out_keys or ()):
                raise RuntimeError(
                    f"{type(transform).__name__} changes {self.in_keys} after the VIPTransform, so that a "
                    f"goal image's embedding is no longer one of these: put it behind {type(self).__name__}."
                )
        if found is not None:
            return found
        raise RuntimeError(
            f"{type(self).__name__} cannot embed a goal image: no VIPTransform that writes "
            f"{self.in_keys} stands before it"
            + (" in this environment" if container is not None else " (it has no environment yet)")
            + ". Where the VIPTransform sits inside the workers or there is none, as in a replay "
            "buffer, give the goal as an embedding, or pass encoder=."
        )

    def _goal_cameras(self, goal: Any = None) -> list[NestedKey]:
        """Keys of the cameras whose embeddings are compared, in the order of the comparison."""
        try:
            embedder = self._find_embedder()
        except RuntimeError:
            return []
        if self._embeds:
            return embedder.cameras
        if embedder is self.embedder:  # it embeds goals only and may not know the cameras
            given = list(goal) if isinstance(goal, Mapping) else self.in_keys[:1]
            known = [keys for keys in (embedder.cameras, self.in_keys) if set(keys) == set(given)]
            return known[0] if known else given
        return [
            camera
            for key in self.in_keys
            for camera in embedder.cameras
            if embedder._embedding_key(camera) == key
        ]

    def _dim(self) -> int | None:
        """Size of the embedding that is compared; None where nothing tells yet."""
        if self.embedder is None or self._embeds:
            cameras = self._goal_cameras()
            if cameras:
                return len(cameras) * self._find_embedder().dim
        if self._safe_container() is not None and self.parent is not None:
            specs = self.parent.full_observation_spec
            for key in self.in_keys:
                if specs.get(key, None) is None:
                    raise KeyError(self._absent(key, specs))
            return sum(specs[key].shape[-1] for key in self.in_keys)
        return None if self.embedder is None else self.embedder.dim

    @property
    def _embeds(self) -> bool:
        """Whether in_keys name frames, which we embed by ourselves."""
        if self.embedder is None:
            return False
        parent = self.parent if self._safe_container() is not None else None
        if parent is None:
            return self.__dict__.get("_saw_frames", False)
        spec = parent.full_observation_spec.get(self.in_keys[0], None)
        if spec is None:
            raise KeyError(self._absent(self.in_keys[0], parent.full_observation_spec))
        return len(spec.shape) - len(parent.batch_size) >= 3

    @property
    def _embedding_keys(self) -> list[NestedKey]:
        return self.embedder.embedding_keys if self._embeds else self.in_keys

    def _absent(self, key: NestedKey, tensordict) -> str:
        return (
            f"{type(self).__name__} found no {key!r}; there is "
            f"{sorted(map(str, tensordict.keys(True, True)))}. Put a VIPTransform before it, or pass "
            "encoder= and in_keys= of the frames."
        )

    # -- at resets and steps -----------------------------------------------------------------------

    def _env_has_goal(self) -> bool:
        """Whether the environment shows the goal of each episode by itself."""
        container = self._safe_container() if self.wants_goal_image else None
        return container is not None and (
            self.goal_image_key in container.base_env.full_observation_spec.keys()
        )

    def _take_goals(
        self, tensordict: TensorDictBase, rows: Tensor | None, batch: torch.Size
    ) -> None:
        """Adopt the goals that ``env.reset(tensordict)`` brings, for the rows being reset."""
        self._resolve()
        goals = self._goals_of(batch)
        every = torch.ones(batch, dtype=torch.bool) if rows is None else rows
        embedding = tensordict.get(self.goal_key, None)
        if embedding is not None:
            if self.nearest and embedding.ndim == len(batch) + 1:  # one goal each
                known = goals.embedding
                count = 1 if known is None else known.shape[-2]
                embedding = embedding.unsqueeze(-2).expand(*batch, count, -1)
            dim = self._dim()
            if dim is not None and embedding.shape[-1] != dim:
                raise ValueError(
                    f"{self.goal_key!r} of shape {tuple(embedding.shape)} at a reset; wanted "
                    f"[..., {dim}]."
                )
            if not embedding[every.to(embedding.device)].isfinite().all():
                raise ValueError(f"{self.goal_key!r} at a reset has values that are not finite.")
            goals.take(embedding, every)
        images = tensordict.get(self.goal_image_key, None)
        if images is not None:
            # of an encoder for goals alone the frames' size is not known here
            known = self.embedder is None or self._embeds or self.goal_image_shape is not None
            spec = self._goal_image_spec(batch) if known else None
            if spec is not None and images.shape != spec.shape:
                raise ValueError(
                    f"{self.goal_image_key!r} of shape {tuple(images.shape)} at a reset; wanted "
                    f"{tuple(spec.shape)}. set_goal(...) takes any size, goal_image_shape= declares another."
                )
            goals.take_images(images, every, self._embed_goal_images)
        if goals.embedding is None:
            raise ValueError(
                f"{type(self).__name__} has no goal: pass goal= at construction, call set_goal(...), "
                f"or put {self.goal_image_key!r} or {self.goal_key!r} in the tensordict of "
                "env.reset(...). (What a lambda makes, ParallelEnv resets before you can: give it a "
                "function or a partial.)"
            )

    def _step_goal(self, tensordict: TensorDictBase, batch: torch.Size) -> Tensor:
        """The goal of this step, ``[D]`` or ``[*B, D]``."""
        self._resolve()
        goals, carried = self._goals_of(batch), tensordict.get(self.goal_key, None)
        if goals.embedding is None:
            # The tensordict was reset by another transform.
            if carried is None:
                raise ValueError(f"{type(self).__name__} has no goal: call set_goal(...) or reset.")
            goals.embedding = carried
        if carried is None or self.container.batch_locked:
            return goals.embedding
        # An environment without a state of its own: each row has the goal that it carries.
        return goals.where_carried(carried, batch)

    def _embed_goal_images(self, images: Tensor) -> Tensor:
        """``[n, *goal_image_shape]`` to ``[n, D]``; several cameras stand in dimension 1."""
        embedder = self._find_embedder()
        try:
            z = embedder.embed(images)
        except (ValueError, TypeError) as error:
            raise type(error)(f"goal_image: {error}") from error
        z = z.flatten(1)  # cameras of one environment joined
        return z.unsqueeze(-2) if self.nearest else z

    def _write_goal(
        self, tensordict: TensorDictBase, first: bool = False, rows: Tensor | None = None
    ) -> None:
        batch, device = tensordict.batch_size, tensordict.device
        goals = self._goals_of(batch)
        goal, other = goals.write(batch, device, rows), tensordict.get(self.goal_key, None)
        if first and other is not None and (other.shape != goal.shape or (other != goal).any()):
            for transform in before(self, chain(self._safe_container())):
                if isinstance(transform, GoalTransform) and transform.goal_key == self.goal_key:
                    raise ValueError(
                        f"two goals under {self.goal_key!r}: give one of the transforms another goal_key=."
                    )
        tensordict.set(self.goal_key, goal)
        if first and self.wants_goal_image and not self._env_has_goal():
            if goals.images is None:
                spec = self._goal_image_spec(batch)
                goals.images = None if spec is None else spec.zero()
            if goals.images is not None:
                tensordict.set(self.goal_image_key, goals.write_images(device, rows))

    def _goal_spec(self, like: Composite) -> Unbounded:
        goal = self.goal
        count = (1 if goal is None else goal.shape[-2],) if self.nearest else ()
        shape = (*like.shape, *count, self._dim())
        return Unbounded(shape=shape, dtype=torch.float32, device=like.device)

    def _goal_image_spec(self, batch: torch.Size) -> Any:
        """Spec of one goal image per environment: the frames' own, unless a shape was declared."""
        container = self._safe_container()
        if container is None or self._env_has_goal():
            return None
        try:
            embedder = self._find_embedder()
        except RuntimeError:  # embedded in the workers: only goal embeddings work here
            return None
        cameras = self._goal_cameras() or embedder.cameras
        spec = container.base_env.full_observation_spec.get(cameras[0], None)
        shape = self.goal_image_shape
        if shape is None and spec is None:
            return None
        if shape is None:
            shape = tuple(spec.shape[-3:])
            count = len(self._goal_cameras())
            shape = (count, *shape) if count > 1 else shape
        dtype = torch.uint8 if spec is None else spec.dtype
        return Unbounded(shape=(*batch, *shape), dtype=dtype, device=container.device)

    # -- state -------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        try:
            goal = self.goal
        except RuntimeError:
            goal = None  # no encoder in reach: there is no embedding to save
        return {} if goal is None else {"goal": goal}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if "goal" in state:
            self._set_all(state["goal"])

    def clone(self):
        """Like this one, with goals of its own from now on."""
        clone = super().clone()
        clone._goals = copy.copy(self._goals)
        clone._sized = {batch: copy.copy(goals) for batch, goals in self._sized.items()}
        if clone.embedder is not None:
            clone.__dict__["embedder"] = clone.embedder.clone()
        return clone


def chain(container: Any, *, nested: bool = True) -> list[Transform]:
    """All transforms of an environment, in their order, however they are nested; without ``nested`` those
    of the environments inside are left out."""

    def flat(transform: Transform | None) -> list[Transform]:
        if isinstance(transform, Compose):
            return [one for part in transform for one in flat(part)]
        return [] if transform is None else [transform]

    if not isinstance(container, TransformedEnv):
        return []
    return (chain(container.base_env) if nested else []) + flat(container.transform)


def before(transform: Transform, transforms: list[Transform]) -> list[Transform]:
    """Those that stand before this one; all where it is not among them."""
    where = [i for i, one in enumerate(transforms) if one is transform]
    return transforms[: where[0]] if where else transforms


def _read_goal(goal: Any) -> Any:
    """Open files, convert arrays and copy; the structure (list, dict) stays."""
    if isinstance(goal, Mapping):
        return {unravel_key(k): read_image(v).clone() for k, v in goal.items()}
    if isinstance(goal, list | tuple):
        return [_read_goal(g) for g in goal]
    return read_image(goal).clone()  # a camera's buffer shows something else by the first use
