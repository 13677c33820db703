"""VIPRewardTransform: the distance to a goal image as a reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data.tensor_specs import Composite, Unbounded
from torchrl.envs import TransformedEnv
from torchrl.envs.transforms import (
    AutoResetTransform,
    ConditionalPolicySwitch,
    FrameSkipTransform,
    MultiAction,
    NoopResetEnv,
    VecGymEnvTransform,
)

from torchrl_vip.functional import check_form, goal_reward
from torchrl_vip.goals import align
from torchrl_vip.transforms.goal import GoalTransform, before, chain
from torchrl_vip.transforms.vip import (
    EncoderLike,
    VIPTransform,
    next_key,
    reset_rows,
    stands,
    step_rows,
)


class VIPRewardTransform(GoalTransform):
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
        goal_key: of the goals' embeddings; two of these transforms with goals of their own need two.

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
        goal_key: NestedKey = "goal_embedding",
    ):
        in_keys = ["vip_vec"] if in_keys is None else in_keys
        in_keys = [in_keys] if isinstance(in_keys, str | tuple) else list(in_keys)
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
        super().__init__(
            goal,
            in_keys,
            encoder=encoder,
            nearest=goal_reduction == "nearest",
            goal_image_shape=goal_image_shape,
            goal_key=goal_key,
        )
        self.reward_key = None if reward_key is None else unravel_key(reward_key)
        self.mode, self.form, self.gamma = mode, form, gamma
        self.vip_reward_key = None if vip_reward_key is None else unravel_key(vip_reward_key)
        self.scale, self.threshold = scale, threshold
        self.weights = None if weights is None else [float(weight) for weight in weights]
        # Embedding of the current frames, [*B, D]. The tensordict may hold what later transforms made of
        # it, and workers of a ParallelEnv are sent no observations.
        self._last: Tensor | None = None

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
        self._refuse_what_hides()
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
            z = torch.where(_beside(rows, z), z, self._last)
        self._last = z.clone()  # whoever gets it may edit it in place
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        if self._embeds:
            next_tensordict = self.embedder._step(tensordict, next_tensordict)
        z_next = self._read(next_tensordict)
        z = self._last
        if z is None or z.shape != z_next.shape or not self.container.batch_locked:
            # An environment without a state of its own steps from what it is given.
            if not all(key in tensordict.keys(True, True) for key in self._embedding_keys):
                raise RuntimeError(
                    f"{type(self).__name__} found no {self._embedding_keys} to step from: step before the "
                    "first reset, or in an environment with batch_locked=False a transform behind it that "
                    "renames or drops it."
                )
            z = self._read(tensordict)
        batch = next_tensordict.batch_size
        goal = self._step_goal(tensordict, batch)
        rows = step_rows(tensordict, batch)
        if rows is not None:
            z_next = torch.where(_beside(rows, z_next), z_next, z)
        self._last = z_next.clone()
        if self._final_frames_missing():
            done = next_tensordict.get("done").reshape(batch)
            z_next = torch.where(_beside(done, z_next), z, z_next)
        reward = self._reward(z, z_next, goal, batch)
        if rows is not None:
            reward = reward * _beside(rows, reward)
        self._put_reward(next_tensordict, reward, self._reward_key())
        if goal is self._goals_of(batch).embedding:
            self._write_goal(next_tensordict)
        else:
            next_tensordict.set(self.goal_key, goal)
        return next_tensordict

    def _final_frames_missing(self) -> bool:
        """Whether an episode's last frame never arrives, so that its last step shows no progress.

        Environments that reset themselves return the next episode's first frame instead; TorchRL blanks
        it with ``auto_reset=True``, and in vectorised gymnasium environments with a dict of observations
        (``AutoresetMode.DISABLED`` keeps it).
        """
        container = self._safe_container()
        if container is None:
            return False
        if container.__dict__.get("_torchrl_native_autoreset", False):
            return True
        for transform in chain(container):
            if isinstance(transform, AutoResetTransform):
                return True
            if isinstance(transform, VecGymEnvTransform):
                env = container
                while isinstance(env, TransformedEnv):
                    env = env.base_env
                space = getattr(getattr(env, "_env", None), "single_observation_space", None)
                return space is None or hasattr(space, "spaces")
        return False

    def _refuse_what_hides(self) -> None:
        """Transforms that step or reset the environment by themselves do so in a clone of what stands before
        them: this one would not see it. Nor would it see the embedding that it steps from, where that is
        read from the tensordict and one behind it has changed it."""
        container = self._safe_container()
        transforms = chain(container)
        if any(isinstance(one, MultiAction) for one in chain(container, nested=False)):
            # TorchRL skips all of the environment's transforms where an episode ends before its last action
            raise ValueError(
                f"MultiAction in one environment with {type(self).__name__} loses the last reward of an "
                "episode: give it one of its own, TransformedEnv(TransformedEnv(env, MultiAction(...)), "
                "Compose(VIPTransform(...), ...), auto_unwrap=False)."
            )
        for transform in transforms[len(before(self, transforms)) :]:
            if isinstance(transform, FrameSkipTransform | NoopResetEnv | ConditionalPolicySwitch):
                raise ValueError(
                    f"{type(transform).__name__} steps the environment by itself, which "
                    f"{type(self).__name__} would not see: put it before the VIPTransform."
                )
            changed = set(self._embedding_keys) & set(transform.out_keys or ())
            if changed and container is not None and not container.batch_locked:
                raise ValueError(
                    f"{type(transform).__name__} changes {sorted(map(str, changed))} behind "
                    f"{type(self).__name__}, which in an environment with batch_locked=False steps from it: "
                    "give it other out_keys."
                )

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        if self._env_has_goal():
            batch = tensordict_reset.batch_size
            shown = tensordict_reset.select(self.goal_image_key)
            self._take_goals(shown, reset_rows(tensordict, batch), batch)
        self._last = self._read(tensordict_reset).clone()
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
        for one in before(self, chain(self._safe_container())):
            if isinstance(one, VIPRewardTransform) and one.mode == "keep":
                keys = [key for key in keys if key != one._vip_key(one._reward_key())]
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

    # -- in a replay buffer, or called on a tensordict --------------------------------------------

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reward of the transitions ``[*B]`` in a copy of the tensordict, under ("next", "reward").

        For the transform's own goal, if it has one for all; else for the rows' "goal_embedding", or, where
        they hold none, for each environment's, which are the first dimensions then.

        Raises:
            ValueError: no goal, or goals of another shape than the rows; rows that MultiStepTransform made.
        """
        if "steps_to_next_obs" in tensordict.keys():
            raise ValueError(
                "rows of MultiStepTransform lead several steps ahead, and their sum of rewards is not the "
                f"reward of that way: apply {type(self).__name__} to the rollout before it is stored, or in "
                "the environment."
            )
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
        goal, own = self.goal, tensordict.get(self.goal_key, None)
        batch, tail = tensordict.batch_size, 2 if self.nearest else 1
        if goal is None or (goal.ndim > tail and own is not None):
            goal = own
            if goal is None:
                raise ValueError(
                    f"{type(self).__name__} has no goal, and the rows hold no {self.goal_key!r}: "
                    "call set_goal(...)."
                )
        lead, goal = goal.shape[:-tail], goal.to(z.device)
        if lead != batch[: len(lead)]:
            raise ValueError(
                f"goals for environments {list(lead)}, rows of shape {list(batch)}, which hold no "
                f"{self.goal_key!r} of their own."
            )
        goal = goal.reshape(*lead, *[1] * (len(batch) - len(lead)), *goal.shape[-tail:])
        goal = goal.expand(*batch, *goal.shape[-tail:])
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
        if self._last is not None:
            self._last = fn(self._last).to(self._last.dtype)
        return self

    def __getstate__(self) -> dict:
        last = None if self._last is None else self._last.detach().clone()
        return {**super().__getstate__(), "_last": last}  # a copy in mid-episode goes on

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_keys}, form={self.form!r}, mode={self.mode!r})"


def _beside(rows: Tensor, values: Tensor) -> Tensor:
    """``[*B]`` made to broadcast against ``[*B, *N]``."""
    return rows.reshape(*rows.shape, *[1] * (values.ndim - rows.ndim))
