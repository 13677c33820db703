"""VIPRewardTransform: the distance to a goal image as a reward."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data.tensor_specs import Composite, Unbounded
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import Compose, Transform, VecGymEnvTransform

from torchrl_vip.functional import check_form, goal_reward, to_chw
from torchrl_vip.goals import Goals, align, is_image, read_image
from torchrl_vip.transforms.vip import EncoderLike, VIPTransform, next_key, reset_rows, stands

_ONE = torch.Size([])  # batch shape of a goal that is not stacked


class VIPRewardTransform(Transform):
    """Reward from the distance to a goal image.

    Reads the embedding that a :class:`VIPTransform` before it wrote, without a second forward, and
    finds that transform's encoder for the goal; or, given an encoder and frames as in_keys, embeds
    by itself. The goals of all environments live here, as "goal_embedding" ``[*B, D]``, which is
    written at every reset and step: a partial reset changes only the rows being reset, an automatic
    one keeps the row's goal.

    A goal is an image (any size, uint8 or [0, 1]), a path, an embedding ``[D]``, a Python list of
    these (their mean embedding, or the nearest), images or embeddings stacked with the environment's
    batch shape in front (one per environment), or, for several cameras in one embedding, a dict
    from camera key to image (in their order where the VIPTransform is in the workers). It is given at
    construction, to :meth:`set_goal` at any time, or in the tensordict at ``env.reset(...)``: as
    "goal_embedding" (unless the environment shows a goal), as "goal_image" where no goal was given at
    construction or ``goal_image_shape`` declares one (it is then carried along in every tensordict, as
    TorchRL wants of an environment's state). An environment that observes "goal_image" by itself
    sets its own goal at every reset, unless one was given at construction.

    In a replay buffer it computes ("next", "reward") of sampled transitions for its own goal, or
    without one for the "goal_embedding" in the rows. There a goal is an embedding, or an encoder is
    given.

    Args:
        goal: see above; None waits for one.

    Keyword Args:
        encoder: as of :class:`VIPTransform`, or a VIPTransform. Embeds frames where in_keys name
            frames; only goals where they name embeddings.
        in_keys: embedding(s), by default "vip_vec"; or frames, with an encoder. Several embeddings
            are compared as one, concatenated; see weights.
        reward_key: which of the environment's rewards, by default its only one.
        mode: ``"replace"`` the environment's reward, ``"add"`` to it, or ``"keep"`` it and write
            ours under ``vip_reward_key``.
        vip_reward_key: for ``mode="keep"``; by default "vip_reward" beside the reward.
        form: see :func:`torchrl_vip.goal_reward`.
        scale: factor on the reward; ``"auto"`` is the checkpoint's ``reward_scale``, with which a
            typical success returns about 1 (divided by √K for K cameras joined in one embedding).
        gamma: discount of ``form="potential"``.
        threshold: of ``form="sparse"``, in the distance's units; None is the checkpoint's
            ``success_threshold`` (times √K).
        weights: of the distances of several cameras, in the order of their embeddings, whose sum then
            is the distance (:func:`torchrl_vip.goal_distance`; :func:`torchrl_vip.camera_weights` finds
            them). Its unit is theirs then: scale and threshold are numbers. None takes one distance
            between all embeddings together.
        goal_reduction: of a list of goals: ``"mean"`` embedding, or ``"nearest"`` goal.
        goal_image_shape: declares "goal_image" with this shape (of one environment) in the state
            spec; by default the frames' own, where no goal is given.

    Raises:
        ValueError: unknown mode or form; weights with the checkpoint's scale or threshold, or not one
            for each camera; a goal of wrong channels, rank or size; no goal at a reset.
        FileNotFoundError: a goal image that does not exist.
        KeyError: no embedding under in_keys.
        RuntimeError: an image as goal but no encoder in reach.

    Examples:
        >>> env = TransformedEnv(base_env, VIPTransform())  # doctest: +SKIP
        >>> env = env.append_transform(VIPRewardTransform(goal="goal.png"))  # doctest: +SKIP
        >>> env.rollout(3)["next", "reward"].shape  # doctest: +SKIP
        torch.Size([3, 1])
    """

    goal_key = "goal_embedding"
    goal_image_key = "goal_image"

    def __init__(
        self,
        goal: Any = None,
        *,
        encoder: EncoderLike | VIPTransform = None,
        in_keys: Sequence[NestedKey] | None = None,
        reward_key: NestedKey | None = None,
        mode: str = "replace",
        vip_reward_key: NestedKey | None = None,
        form: str = "difference",
        scale: float | str = 1.0,
        gamma: float = 0.98,
        threshold: float | None = None,
        weights: Sequence[float] | Tensor | None = None,
        goal_reduction: str = "mean",
        goal_image_shape: Sequence[int] | None = None,
    ):
        in_keys = ["vip_vec"] if in_keys is None else in_keys
        in_keys = [in_keys] if isinstance(in_keys, str | tuple) else list(in_keys)
        super().__init__(in_keys=in_keys)
        for name, value, choices in (
            ("mode", mode, ("replace", "add", "keep")),
            ("goal_reduction", goal_reduction, ("mean", "nearest")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}; wanted one of {', '.join(choices)}.")
        if isinstance(scale, str) and scale != "auto":
            raise ValueError(f"scale={scale!r}; wanted a number or 'auto'.")
        check_form(form, 0.0)
        if weights is not None and (scale == "auto" or (form == "sparse" and threshold is None)):
            raise ValueError(
                "with weights the distance has other units than the checkpoint's scale='auto' and "
                "threshold=None: give numbers."
            )
        if encoder is not None and not isinstance(encoder, VIPTransform):
            encoder = VIPTransform(encoder, in_keys=self.in_keys, del_keys=False)
        # Not registered, like a VIPTransform's own encoder: it is frozen.
        self.__dict__["embedder"] = encoder
        self.reward_key = None if reward_key is None else unravel_key(reward_key)
        self.mode, self.form, self.gamma = mode, form, gamma
        self.vip_reward_key = None if vip_reward_key is None else unravel_key(vip_reward_key)
        self.scale, self.threshold = scale, threshold
        self.weights = None if weights is None else [float(weight) for weight in weights]
        self.nearest = goal_reduction == "nearest"
        self.goal_image_shape = None if goal_image_shape is None else tuple(goal_image_shape)
        self.wants_goal_image = goal is None or goal_image_shape is not None
        # What the user gave, until an encoder is in reach; files are opened now, so that a wrong
        # path is an error here.
        self._pending = None if goal is None else _read_goal(goal)
        self._goals = Goals(as_sets=self.nearest)
        # Embedding of the current frames, [*B, D]. The tensordict may hold what later transforms made of
        # it, and workers of a ParallelEnv are sent no observations.
        self._last: Tensor | None = None

    # -- goals ------------------------------------------------------------------------------------

    @property
    def goal(self) -> Tensor | None:
        """Goal embedding(s), float32 ``[D]`` or ``[*B, D]`` (``[..., G, D]`` with "nearest")."""
        self._resolve()
        return self._goals.embedding

    def set_goal(self, goal: Any, env_ids: int | Sequence[int] | Tensor | None = None) -> None:
        """Give a new goal, from the next step on.

        Args:
            goal: as at construction.
            env_ids: indices or a mask of the environments that get it, in the order in which goals are
                stacked; None is all of them.

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
            self._goals.set(embedding)
            self._pending = None
            return
        batch = self._batch_size()
        if not batch:
            raise ValueError("env_ids= needs an environment with a batch dimension.")
        numbers = torch.arange(batch.numel()).reshape(batch)
        chosen = torch.as_tensor(env_ids).cpu()
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
        self._goals.set_rows(embedding, rows.reshape(batch), batch)

    def _resolve(self) -> None:
        if self._pending is not None:
            self._goals.set(self._embed_goal(self._pending, self._batch_size()))
            self._pending = None

    def _batch_size(self) -> torch.Size:
        container = self._safe_container()
        return torch.Size([]) if container is None else container.batch_size

    def _embed_goal(self, goal: Any, batch_in_front: torch.Size = _ONE) -> Tensor:
        """A goal as given to float32 ``[D]`` or ``[*B, D]``; ``[..., G, D]`` with "nearest"."""
        if isinstance(goal, list | tuple):
            if not goal:
                raise ValueError("an empty list of goals; wanted at least one.")
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
            raise ValueError(
                f"goal embeddings of shape {tuple(goal.shape)}; wanted [{goal.shape[-1]}], or "
                f"{[*batch, goal.shape[-1]]} for one per environment. A set of goals is a list."
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

    def _safe_container(self):
        try:
            return self.container
        except ValueError:  # TorchRL raises where the container is a replay buffer
            return None

    def _find_embedder(self) -> VIPTransform:
        """The VIPTransform that embeds goals: our own, or the one before us that feeds our in_keys."""
        if self.embedder is not None:
            return self.embedder
        container = self._safe_container()
        for transform in _chain(container):
            if isinstance(transform, VIPTransform) and set(self.in_keys) <= set(transform.out_keys):
                return transform
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

    def _read(self, tensordict: TensorDictBase, prefix: bool = False) -> Tensor:
        """The embedding to compare, ``[*B, D]``."""
        parts = []
        for key in self._embedding_keys:
            z = tensordict.get(next_key(key) if prefix else key, None)
            if z is None:
                raise KeyError(self._absent(next_key(key) if prefix else key, tensordict))
            parts.append(z)
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    # -- in an environment ------------------------------------------------------------------------

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        batch = tensordict_reset.batch_size
        rows = reset_rows(tensordict, batch)
        if self._embeds:
            tensordict_reset = self.embedder._reset(tensordict, tensordict_reset)
        if self._env_has_goal():
            tensordict = tensordict.exclude(self.goal_key)  # of the last episode
            tensordict.set(self.goal_image_key, tensordict_reset.get(self.goal_image_key))
        self._take_goals(tensordict, rows, batch)
        self._write_goal(tensordict_reset, first=True, rows=rows)
        z = self._read(tensordict_reset)
        if rows is not None and self._last is not None and self._last.shape == z.shape:
            z = torch.where(rows.reshape(*batch, *[1] * (z.ndim - len(batch))), z, self._last)
        self._last = z
        return tensordict_reset

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
        every = torch.ones(batch, dtype=torch.bool) if rows is None else rows
        embedding = tensordict.get(self.goal_key, None)
        if embedding is not None:
            dim = self._dim()
            if dim is not None and embedding.shape[-1] != dim:
                raise ValueError(
                    f"{self.goal_key!r} of shape {tuple(embedding.shape)} at a reset; wanted "
                    f"[..., {dim}]."
                )
            if not embedding[every.to(embedding.device)].isfinite().all():
                raise ValueError(f"{self.goal_key!r} at a reset has values that are not finite.")
            self._goals.take(embedding, every)
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
            self._goals.take_images(images, every, self._embed_goal_images)
        if self._goals.embedding is None:
            raise ValueError(
                f"{type(self).__name__} has no goal: pass goal= at construction, call set_goal(...), "
                f"or put {self.goal_image_key!r} or {self.goal_key!r} in the tensordict of "
                "env.reset(...)."
            )

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
        tensordict.set(self.goal_key, self._goals.write(batch, device, rows))
        if first and self.wants_goal_image and not self._env_has_goal():
            if self._goals.images is None:
                spec = self._goal_image_spec(batch)
                self._goals.images = None if spec is None else spec.zero()
            if self._goals.images is not None:
                tensordict.set(self.goal_image_key, self._goals.write_images(device, rows))

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if self._embeds:
            next_tensordict = self.embedder._step(tensordict, next_tensordict)
        z_next = self._read(next_tensordict)
        z = self._last
        if z is None or z.shape != z_next.shape or not self.container.batch_locked:
            # An environment without a state of its own steps from what it is given.
            if not all(key in tensordict.keys(True, True) for key in self._embedding_keys):
                raise RuntimeError(f"{type(self).__name__}: step before the first reset.")
            z = self._read(tensordict)
        self._last = z_next
        self._take_step_goal(tensordict)
        if self._final_frames_missing():
            done = next_tensordict.get("done").reshape(*next_tensordict.batch_size, 1)
            z_next = torch.where(done, z, z_next)
        reward = self._reward(z, z_next, self._goals.embedding, next_tensordict.batch_size)
        self._put_reward(next_tensordict, reward, self._reward_key())
        self._write_goal(next_tensordict)
        return next_tensordict

    def _final_frames_missing(self) -> bool:
        """Whether an episode's last frame never arrives, so that its last step shows no progress.

        Environments that reset themselves return the next episode's first frame instead, and
        TorchRL blanks it in vectorised gymnasium ones (``AutoresetMode.DISABLED`` keeps it).
        """
        container = self._safe_container()
        if container is None:
            return False
        return bool(container.__dict__.get("_torchrl_native_autoreset", False)) or any(
            isinstance(transform, VecGymEnvTransform) for transform in _chain(container)
        )

    def _take_step_goal(self, tensordict: TensorDictBase) -> None:
        self._resolve()
        if self._goals.embedding is None:
            # The tensordict was reset by another transform.
            goal = tensordict.get(self.goal_key, None)
            if goal is None:
                raise ValueError(f"{type(self).__name__} has no goal: call set_goal(...) or reset.")
            self._goals.embedding = goal

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if self._env_has_goal():
            batch = tensordict_reset.batch_size
            shown = tensordict_reset.select(self.goal_image_key)
            self._take_goals(shown, reset_rows(tensordict, batch), batch)
        self._last = self._read(tensordict_reset)
        self._write_goal(tensordict_reset, first=True)
        return tensordict_reset

    def _reward(self, z: Tensor, z_next: Tensor, goal: Tensor, batch: torch.Size) -> Tensor:
        """``[*B, *N]`` for embeddings ``[*B, *N, D]``."""
        goal = align(goal, z_next, batch, self.nearest)
        return self._reward_of(z_next, z=z, goal=goal)

    def _reward_of(
        self,
        z_next: Tensor,
        form: str | None = None,
        scale: float | None = None,
        *,
        z: Tensor | None = None,
        goal: Tensor | None = None,
    ) -> Tensor:
        """goal_reward with our options where no others are given."""
        goal = self.goal if goal is None else goal
        if goal is None:
            raise ValueError("there is no goal yet: call set_goal(...).")
        return goal_reward(
            z,
            z_next,
            goal.to(z_next.device),
            form=form or self.form,
            scale=self._scale(z_next.shape[-1]) if scale is None else scale,
            gamma=self.gamma,
            threshold=self._threshold(z_next.shape[-1]),
            weights=self.weights,
        )

    def _calibrated(self, name: str, dim: int) -> tuple[float | None, float]:
        """A number of the checkpoint's config, of one camera, and what a distance between ``dim`` numbers is
        longer by: the root of how many cameras are joined in them."""
        try:
            embedder = self._find_embedder()
        except RuntimeError as error:
            raise ValueError(
                "scale='auto', and form='sparse' without threshold=, read the encoder's config, and no "
                "encoder is in reach here: pass encoder=, or numbers."
            ) from error
        number = getattr(embedder.encoder, "config", {}).get(name)
        return number, math.sqrt(dim / embedder.dim)

    def _scale(self, dim: int) -> float:
        if self.scale != "auto":
            return self.scale
        scale, longer = self._calibrated("reward_scale", dim)
        if scale is None:
            raise ValueError(
                "scale='auto': this encoder's config has no reward_scale; give a number."
            )
        return scale / longer

    def _threshold(self, dim: int) -> float | None:
        if self.form != "sparse" or self.threshold is not None:
            return self.threshold
        threshold, longer = self._calibrated("success_threshold", dim)
        return None if threshold is None else threshold * longer

    def _put_reward(self, tensordict: TensorDictBase, reward: Tensor, key: NestedKey) -> None:
        own = tensordict.get(key, None)
        if own is None:
            shape, dtype = (*tensordict.batch_size, 1), torch.float32
        else:
            shape, dtype = own.shape, own.dtype
        # [*B, *N] to the shape of the environment's reward, [*B, *M, 1].
        reward = reward.to(dtype if dtype.is_floating_point else torch.float32)
        reward = reward.reshape(*reward.shape, *[1] * (len(shape) - reward.ndim)).expand(shape)
        if self.mode == "add" and own is not None:
            reward = own + reward
        tensordict.set(self._vip_key(key) if self.mode == "keep" else key, reward.clone())

    def _vip_key(self, reward_key: NestedKey) -> NestedKey:
        if self.vip_reward_key is not None:
            return self.vip_reward_key
        return (*reward_key[:-1], "vip_reward") if isinstance(reward_key, tuple) else "vip_reward"

    def _reward_key(self) -> NestedKey:
        if self.reward_key is not None:
            return self.reward_key
        parent = self.parent if self._safe_container() is not None else None
        keys = ["reward"] if parent is None else list(parent.reward_keys)
        if len(keys) != 1:
            raise ValueError(f"the environment has the rewards {keys}: choose with reward_key=.")
        self.reward_key = unravel_key(keys[0])
        return self.reward_key

    # -- specs ------------------------------------------------------------------------------------

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        key = self._reward_key()
        reward_spec = reward_spec.clone()
        own = reward_spec.get(key, None)
        if own is None:
            raise KeyError(f"no reward {key!r}; there is {list(reward_spec.keys(True, True))}.")
        dtype = own.dtype if own.dtype.is_floating_point else torch.float32
        out = self._vip_key(key) if self.mode == "keep" else key
        reward_spec[out] = Unbounded(shape=own.shape, dtype=dtype, device=own.device)
        return reward_spec

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        if self._embeds:
            observation_spec = self.embedder.transform_observation_spec(observation_spec)
        else:
            observation_spec = observation_spec.clone()
        for key in self._embedding_keys:
            if observation_spec.get(key, None) is None:
                raise KeyError(self._absent(key, observation_spec))
        if self.weights is not None and (self.embedder is None or self._embeds):
            cameras = self._goal_cameras()
            if cameras and len(cameras) != len(self.weights):
                raise ValueError(f"{len(self.weights)} weights for the cameras {cameras}.")
        observation_spec[self.goal_key] = self._goal_spec(observation_spec)
        return observation_spec

    def transform_state_spec(self, state_spec: Composite) -> Composite:
        state_spec = state_spec.clone()
        state_spec[self.goal_key] = self._goal_spec(state_spec)
        image_spec = self._goal_image_spec(state_spec.shape) if self.wants_goal_image else None
        if image_spec is not None:
            state_spec[self.goal_image_key] = image_spec
        return state_spec

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

    # -- in a replay buffer, or called on a tensordict --------------------------------------------

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reward of the transitions ``[*B]`` in a copy of the tensordict, under ("next", "reward")."""
        tensordict = tensordict.copy()
        first = tensordict.get(self.in_keys[0], None)
        self.__dict__["_saw_frames"] = (
            self.embedder is not None
            and first is not None
            and first.ndim - len(tensordict.batch_size) >= 3
        )
        if self._embeds:
            tensordict = self.embedder.forward(tensordict)
        z, z_next = self._read(tensordict), self._read(tensordict, prefix=True)
        goal = self.goal
        if goal is None:
            goal = tensordict.get(self.goal_key, None)
            if goal is None:
                raise ValueError(
                    f"{type(self).__name__} has no goal, and the rows hold no {self.goal_key!r}: "
                    "call set_goal(...)."
                )
        tail = 2 if self.nearest else 1
        goal = goal.to(z.device).expand(*tensordict.batch_size, *goal.shape[-tail:])
        reward = self._reward(z, z_next, goal, tensordict.batch_size)
        next_tensordict = tensordict.get("next").copy()
        self._put_reward(next_tensordict, reward, self.reward_key or "reward")
        tensordict.set("next", next_tensordict)
        return tensordict.set(self.goal_key, goal)

    # -- state ------------------------------------------------------------------------------------

    def _apply(self, fn: Callable, recurse: bool = True):
        super()._apply(fn, recurse)
        if self.embedder is not None:
            self.embedder._moves_encoder |= stands(self)
            self.embedder._apply(fn)
        self._last = None
        self._goals.forget_written()
        return self

    def get_extra_state(self) -> dict[str, Any]:
        try:
            goal = self.goal
        except RuntimeError:
            goal = None  # no encoder in reach: there is no embedding to save
        return {} if goal is None else {"goal": goal}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if "goal" in state:
            self._goals.set(state["goal"])
            self._pending = None

    def clone(self):
        """Like this one, with goals of its own from now on."""
        clone = super().clone()
        clone._goals = copy.copy(self._goals)
        if clone.embedder is not None:
            clone.__dict__["embedder"] = clone.embedder.clone()
        return clone

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_last": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_keys}, form={self.form!r}, mode={self.mode!r})"


def _chain(container: Any) -> list[Transform]:
    """All transforms of an environment, in their order, however they are nested."""

    def flat(transform: Transform | None) -> list[Transform]:
        if isinstance(transform, Compose):
            return [one for part in transform for one in flat(part)]
        return [] if transform is None else [transform]

    if not isinstance(container, TransformedEnv):
        return []
    return _chain(container.base_env) + flat(container.transform)


def _read_goal(goal: Any) -> Any:
    """Open files, convert arrays and copy; the structure (list, dict) stays."""
    if isinstance(goal, Mapping):
        return {unravel_key(k): read_image(v).clone() for k, v in goal.items()}
    if isinstance(goal, list | tuple):
        return [_read_goal(g) for g in goal]
    return read_image(goal).clone()  # a camera's buffer shows something else by the first use
