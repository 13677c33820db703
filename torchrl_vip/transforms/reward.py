"""VIPRewardTransform: the distance to a goal image as a reward."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data.tensor_specs import Composite, Unbounded
from torchrl.envs.transforms import Transform

from torchrl_vip.functional import check_form, goal_distance, reward_of_distances
from torchrl_vip.goals import align
from torchrl_vip.transforms.average import AverageDistance
from torchrl_vip.transforms.goal import IMAGE_KEY, GoalState
from torchrl_vip.transforms.keys import (
    as_keys,
    broadcast_rows,
    flagged_rows,
    reset_rows,
    step_rows,
)
from torchrl_vip.transforms.placement import (
    check_order,
    environment_of,
    is_attached,
    last_frames_arrive,
    transforms_before,
)
from torchrl_vip.transforms.source import Source, find_source
from torchrl_vip.transforms.vip import EncoderLike, VIPTransform

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own from Python 3.11 on

CALIBRATED_SCALES = {"auto": "reward_scale", "auto-other": "reward_scale_other"}
"""Values of ``scale`` that are read from a checkpoint's config, and the field."""


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
        scale: factor on the reward. ``"auto"`` is the checkpoint's ``reward_scale``, calibrated so that
            a clip returns about 1 against its own last frame. Against the goal image of another episode
            it returns less: that goal is not as far from the start. ``"auto-other"`` is
            ``reward_scale_other``, calibrated against the ends of other episodes of the same scene; a
            checkpoint without it raises. Both are divided by √K for K cameras joined in one embedding.
        gamma: discount of ``form="potential"``.
        threshold: of ``form="sparse"``, in the distance's units; None is the checkpoint's
            ``success_threshold`` (times √K).
        weights: of the distances of several cameras, in the order of their embeddings, whose sum then
            is the distance (:func:`torchrl_vip.goal_distance`; :func:`torchrl_vip.camera_weights` finds
            them). Its unit is theirs then: scale and threshold are numbers. None takes one distance
            between all embeddings together.
        smoothing: share of the past in a causal average of the distance, in [0, 1), which takes bumps off
            it: every form then is of the average, see
            :class:`~torchrl_vip.transforms.average.AverageDistance`. An episode's first frame
            starts it, and a new goal starts it again, at the last frame. 0 is off. Not in a replay buffer,
            whose rows are in no order.
        goal_reduction: of a list of goals: ``"mean"`` embedding, or ``"nearest"`` goal.
        goal_image_shape: declares "goal_image" with this shape (of one environment) in the state
            spec; by default the frames' own, where no goal is given.
        goal_key: of the goals' embeddings; two of these transforms with goals of their own need two.

    Raises:
        ValueError: unknown mode or form; smoothing out of range, in a replay buffer, or in an environment
            without a state of its own; weights with the checkpoint's scale or threshold, or not one
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
        smoothing: float = 0.0,
        goal_reduction: str = "mean",
        goal_image_shape: Sequence[int] | None = None,
        goal_key: NestedKey = "goal_embedding",
    ):
        for name, value, choices in (
            ("mode", mode, ("replace", "add", "keep")),
            ("goal_reduction", goal_reduction, ("mean", "nearest")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}; wanted one of {', '.join(choices)}.")
        if isinstance(scale, str) and scale not in CALIBRATED_SCALES:
            raise ValueError(
                f"scale={scale!r}; wanted a number or one of {', '.join(CALIBRATED_SCALES)}."
            )
        check_form(form, 0.0)
        calibrated = isinstance(scale, str) or (form == "sparse" and threshold is None)
        if weights is not None and calibrated:
            raise ValueError(
                "with weights the distance has other units than the checkpoint's scale='auto' and "
                "threshold=None: give numbers."
            )
        super().__init__(in_keys=as_keys("vip_vec" if in_keys is None else in_keys))
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
        self._goals = GoalState(
            goal, key=goal_key, nearest=self.nearest, image_shape=goal_image_shape
        )
        # Where the embeddings come from, at the place where this transform was last seen to stand.
        self._source: Source | None = None
        self._last_frames_arrive = True
        # Embedding of the current frames, [*B, D]. The tensordict may hold what later transforms made of
        # it, and workers of a ParallelEnv are sent no observations.
        self._last: Tensor | None = None
        self._average = AverageDistance(smoothing)

    # -- goals -------------------------------------------------------------------------------------

    @property
    def goal(self) -> Tensor | None:
        """Goal embedding(s), float32 ``[D]`` or ``[*B, D]`` (``[..., G, D]`` with "nearest")."""
        environment = environment_of(self)
        if self._goals.is_pending:
            self._goals.embed_pending(self._find_source(), environment)
        return self._goals.embedding(environment)

    @property
    def goal_key(self) -> NestedKey:
        """Of the goals' embeddings in the tensordict."""
        return self._goals.key

    def set_goal(self, goal: Any, env_ids: int | Sequence[int] | Tensor | None = None) -> None:
        """Give a new goal, from the next step on.

        Args:
            goal: as at construction.
            env_ids: indices or a mask of the environments that get it, in the order in which goals are
                stacked; None is all of them, of every batch size where the environment takes any.

        Raises:
            ValueError: as the class; or ``env_ids`` without an environment, twice or beyond them.
        """
        source, environment = self._find_source(), environment_of(self)
        if env_ids is None:
            self._goals.set(goal, source, environment)
        else:
            self._goals.set_some(goal, source, environment, env_ids)

    # -- the number --------------------------------------------------------------------------------

    @property
    def smoothing(self) -> float:
        """Share of the past in the average of the distance; 0 is off."""
        return self._average.smoothing

    def distance_to_goal(self, z: Tensor, goal: Tensor | None = None) -> Tensor:
        """Distances of embeddings ``[*B, D]``: ``[*B]``, embedding units (times the weights')."""
        return goal_distance(z, self._goal_or_own(goal, z), self.weights)

    def reward_between(
        self,
        z: Tensor | None,
        z_next: Tensor,
        goal: Tensor | None = None,
        *,
        average: AverageDistance | None = None,
        held: Sequence[Tensor] = (),
    ) -> Tensor:
        """Reward of going from embeddings ``z`` to ``z_next``, ``[*B, D]`` each, by our options: ``[*B]``.

        ``z`` is needed for the forms that compare, and for an average; ``goal`` broadcasts (a set of goals:
        ``[..., G, D]``), None is this transform's own. ``average`` is of the distances so far, and goes on
        by this step but in the rows ``held``; without one nothing is smoothed.
        """
        goal = self._goal_or_own(goal, z_next)
        distance = None if z is None else goal_distance(z, goal, self.weights)
        distance_next = goal_distance(z_next, goal, self.weights)
        if average is not None and distance is not None:
            distance, distance_next = average.step(distance, distance_next, goal, held)
        return reward_of_distances(
            distance,
            distance_next,
            form=self.form,
            scale=self._scale(z_next.shape[-1]),
            gamma=self.gamma,
            threshold=self._threshold(z_next.shape[-1]),
        )

    def _goal_or_own(self, goal: Tensor | None, z: Tensor) -> Tensor:
        goal = self.goal if goal is None else goal
        if goal is None:
            raise ValueError("there is no goal yet: call set_goal(...).")
        return goal.to(z.device)

    def _scale(self, dim: int) -> float:
        if not isinstance(self.scale, str):
            return self.scale
        field = CALIBRATED_SCALES[self.scale]
        scale, root_of_cameras = self._calibrated(field, dim)
        if scale is None:
            raise ValueError(
                f"scale={self.scale!r}: this encoder's config has no {field}; give a number."
            )
        return scale / root_of_cameras

    def _threshold(self, dim: int) -> float | None:
        if self.form != "sparse" or self.threshold is not None:
            return self.threshold
        threshold, root_of_cameras = self._calibrated("success_threshold", dim)
        return None if threshold is None else threshold * root_of_cameras

    def _calibrated(self, field: str, dim: int) -> tuple[float | None, float]:
        """A number of the checkpoint's config, which is of one camera; and √K, by which a distance between
        K cameras' embeddings joined, ``dim`` numbers, is longer."""
        try:
            vip = self._known_source().goal_vip
        except RuntimeError as error:
            raise ValueError(
                "scale='auto', and form='sparse' without threshold=, read the encoder's config, and no "
                "encoder is in reach here: pass encoder=, or numbers."
            ) from error
        return getattr(vip.encoder, "config", {}).get(field), math.sqrt(dim / vip.dim)

    # -- its place ------------------------------------------------------------------------------

    def _find_source(self, rows: TensorDictBase | None = None) -> Source:
        """Look where the embeddings come from; when specs are made, at resets, and for rows of a buffer."""
        environment = environment_of(self)
        if self.smoothing and environment is not None and not environment.batch_locked:
            raise ValueError(
                f"smoothing={self.smoothing} in an environment without a state of its own "
                "(batch_locked=False): its rows may be another's at every step. Leave smoothing at 0."
            )
        self._source = find_source(self, self.embedder, rows)
        self._last_frames_arrive = last_frames_arrive(environment)
        return self._source

    def _known_source(self) -> Source:
        return self._source or self._find_source()

    # -- in an environment ------------------------------------------------------------------------

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        source, environment = self._find_source(), environment_of(self)
        check_order(self, source.keys)
        batch = tensordict_reset.batch_size
        rows = reset_rows(tensordict, batch)
        tensordict_reset = source.reset(tensordict, tensordict_reset)
        if self._goals.shown_by(environment):
            given = tensordict.exclude(self.goal_key)  # that of the last episode
            given.set(IMAGE_KEY, tensordict_reset.get(IMAGE_KEY))
        else:
            given = tensordict
        self._goals.take(given, rows, batch, source, environment)
        self._write_first_goal(tensordict_reset, rows)
        z = source.read(tensordict_reset)
        rows = reset_rows(tensordict, batch, source.keys[0])
        if rows is not None and self._last is not None and self._last.shape == z.shape:
            z = torch.where(broadcast_rows(rows, z), z, self._last)
        self._last = z.clone()  # whoever gets it may edit it in place
        self._average.start(rows)
        return tensordict_reset

    def _write_first_goal(self, tensordict: TensorDictBase, rows: Tensor | None = None) -> None:
        """Write the goals, and their images, where an episode begins."""
        environment = environment_of(self)
        if (
            self.goal_key in tensordict.keys(True, True)
            and any(
                isinstance(one, VIPRewardTransform) and one.goal_key == self.goal_key
                for one in transforms_before(self)
            )
            and self._goals.differs(tensordict, environment)
        ):
            raise ValueError(
                f"two goals under {self.goal_key!r}: give one of the transforms another goal_key=."
            )
        self._goals.write(tensordict, environment, rows)
        self._goals.write_images(tensordict, self._known_source(), environment, rows)

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        source, environment = self._known_source(), environment_of(self)
        batch = next_tensordict.batch_size
        next_tensordict = source.step(tensordict, next_tensordict)
        z_next = source.read(next_tensordict)
        z = self._z_before(tensordict, z_next)
        goal, is_held = self._goals.of_step(tensordict, batch, source, environment)
        stepped = step_rows(tensordict, batch)
        held = []
        if stepped is not None:
            z_next = torch.where(broadcast_rows(stepped, z_next), z_next, z)
            held.append(~stepped)
        self._last = z_next.clone()
        if not self._last_frames_arrive:  # nothing is known of the last step
            done = flagged_rows(next_tensordict, "done", batch, source.keys[0])
            if done is not None:
                z_next = torch.where(broadcast_rows(done, z_next), z, z_next)
                held.append(done)
        goals = align(goal, z_next, batch, self.nearest)
        average = self._average if self.smoothing else None
        reward = self.reward_between(z, z_next, goals, average=average, held=held)
        if stepped is not None:
            reward = reward * broadcast_rows(stepped, reward)
        self._put_reward(next_tensordict, reward, self._find_reward_key())
        if is_held:
            self._goals.write(next_tensordict, environment)
        else:
            next_tensordict.set(self.goal_key, goal)
        return next_tensordict

    def _z_before(self, tensordict: TensorDictBase, z_next: Tensor) -> Tensor:
        """The embedding that a step starts from."""
        z, source, environment = self._last, self._known_source(), environment_of(self)
        has_state = environment is None or environment.batch_locked
        if z is not None and z.shape == z_next.shape and has_state:
            return z
        # An environment without a state of its own steps from what it is given.
        if not all(key in tensordict.keys(True, True) for key in source.keys):
            raise RuntimeError(
                f"{type(self).__name__} found no {source.keys} to step from: step before the first reset, "
                "or in an environment with batch_locked=False a transform behind it that renames or drops "
                "it."
            )
        return source.read(tensordict)

    def _reset_on_native_autoreset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        source, environment = self._find_source(), environment_of(self)
        if self._goals.shown_by(environment):
            batch = tensordict_reset.batch_size
            shown = tensordict_reset.select(IMAGE_KEY)
            self._goals.take(shown, reset_rows(tensordict, batch), batch, source, environment)
        self._last = source.read(tensordict_reset).clone()
        self._average.start(reset_rows(tensordict, tensordict_reset.batch_size, source.keys[0]))
        self._write_first_goal(tensordict_reset)
        return tensordict_reset

    # -- where the reward goes ---------------------------------------------------------------------

    @property
    def written_reward_key(self) -> NestedKey:
        """The key under which the reward is written."""
        key = self._find_reward_key()
        if self.mode != "keep":
            return key
        if self.vip_reward_key is not None:
            return self.vip_reward_key
        return (*key[:-1], "vip_reward") if isinstance(key, tuple) else "vip_reward"

    def _find_reward_key(self) -> NestedKey:
        """Which of the environment's rewards is ours to replace, add to or keep."""
        if self.reward_key is not None:
            return self.reward_key
        if environment_of(self) is None or self.parent is None:
            return "reward"
        others = [
            one.written_reward_key
            for one in transforms_before(self)
            if isinstance(one, VIPRewardTransform) and one.mode == "keep"
        ]
        keys = [key for key in self.parent.reward_keys if key not in others]
        if len(keys) != 1:
            raise ValueError(f"the environment has the rewards {keys}: choose with reward_key=.")
        self.reward_key = unravel_key(keys[0])
        return self.reward_key

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
        tensordict.set(self.written_reward_key, reward.clone())

    # -- specs ------------------------------------------------------------------------------------

    def transform_reward_spec(self, reward_spec: Composite) -> Composite:
        key = self._find_reward_key()
        reward_spec = reward_spec.clone()
        own = reward_spec.get(key, None)
        if own is None:
            raise KeyError(f"no reward {key!r}; there is {list(reward_spec.keys(True, True))}.")
        dtype = own.dtype if own.dtype.is_floating_point else torch.float32
        spec = Unbounded(shape=own.shape, dtype=dtype, device=own.device)
        reward_spec[self.written_reward_key] = spec
        return reward_spec

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        source = self._find_source()
        observation_spec = source.observation_spec(observation_spec)
        if self.weights is not None and source.knows_frames:
            cameras = source.cameras()
            if cameras and len(cameras) != len(self.weights):
                raise ValueError(f"{len(self.weights)} weights for the cameras {cameras}.")
        observation_spec[self.goal_key] = self._goal_spec(observation_spec)
        return observation_spec

    def transform_state_spec(self, state_spec: Composite) -> Composite:
        state_spec = state_spec.clone()
        state_spec[self.goal_key] = self._goal_spec(state_spec)
        if self._goals.takes_images:
            image_spec = self._goals.image_spec(
                state_spec.shape, self._known_source(), environment_of(self)
            )
            if image_spec is not None:
                state_spec[IMAGE_KEY] = image_spec
        return state_spec

    def _goal_spec(self, like: Composite) -> Unbounded:
        source, environment = self._find_source(), environment_of(self)
        if self._goals.is_pending:
            self._goals.embed_pending(source, environment)
        return self._goals.spec(like, source, environment)

    # -- in a replay buffer, or called on a tensordict --------------------------------------------

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reward of the transitions ``[*B]`` in a copy of the tensordict, under ("next", "reward").

        For the transform's own goal, if it has one for all; else for the rows' "goal_embedding", or, where
        they hold none, for each environment's, which are the first dimensions then. Where the next
        embedding is not known (NaN, as TorchRL's NextStateReconstructor writes where rows end) the reward
        is 0, and a warning says of how many rows.

        Raises:
            ValueError: smoothing; no goal, or goals of another shape than the rows; rows that
                MultiStepTransform made; an embedding that is not finite.
        """
        if self.smoothing:
            raise ValueError(
                f"smoothing={self.smoothing} outside of an environment: the rows of a replay buffer are in "
                "no order, so that nothing is known of the frames before. Smooth in the environment, and "
                "store the reward."
            )
        if "steps_to_next_obs" in tensordict.keys():
            raise ValueError(
                "rows of MultiStepTransform lead several steps ahead, and their sum of rewards is not the "
                f"reward of that way: apply {type(self).__name__} to the rollout before it is stored, or in "
                "the environment."
            )
        source = self._find_source(tensordict)
        tensordict = source.forward(tensordict.copy())
        z, z_next = source.read(tensordict), source.read(tensordict, following=True)
        goal = self._goal_of_rows(tensordict).to(z.device)
        reward = self.reward_between(
            z, z_next, align(goal, z_next, tensordict.batch_size, self.nearest)
        )
        reward = self._without_unknown(reward, z, z_next)
        next_tensordict = tensordict.get("next").copy()
        self._put_reward(next_tensordict, reward, self.reward_key or "reward")
        tensordict.set("next", next_tensordict)
        return tensordict.set(self.goal_key, goal)

    def _goal_of_rows(self, tensordict: TensorDictBase) -> Tensor:
        """The goal of every row, ``[*B, D]`` (``[*B, G, D]`` of sets)."""
        goal, carried = self.goal, tensordict.get(self.goal_key, None)
        batch, tail = tensordict.batch_size, 2 if self.nearest else 1
        if goal is None or (goal.ndim > tail and carried is not None):
            goal = carried
        if goal is None:
            raise ValueError(
                f"{type(self).__name__} has no goal, and the rows hold no {self.goal_key!r}: "
                "call set_goal(...)."
            )
        lead = goal.shape[:-tail]
        if lead != batch[: len(lead)]:
            raise ValueError(
                f"goals for environments {list(lead)}, rows of shape {list(batch)}, which hold no "
                f"{self.goal_key!r} of their own."
            )
        goal = goal.reshape(*lead, *[1] * (len(batch) - len(lead)), *goal.shape[-tail:])
        return goal.expand(*batch, *goal.shape[-tail:])

    def _without_unknown(self, reward: Tensor, z: Tensor, z_next: Tensor) -> Tensor:
        """Rewards ``[*B]``, 0 where ``z_next`` is not known."""
        if not z.isfinite().all():
            count = int((~z.isfinite()).any(-1).sum())
            raise ValueError(
                f"{self._known_source().keys} of {count} of {z[..., 0].numel()} rows is not finite: look "
                "for NaN or infinity in what was stored."
            )
        unknown = z_next.isnan().any(-1)
        if unknown.any():
            warnings.warn(
                f"the next embedding of {int(unknown.sum())} of {unknown.numel()} rows is not known (NaN): "
                "their reward is 0.",
                stacklevel=3,
            )
            reward = reward.masked_fill(unknown, 0.0)
        return reward

    # -- state ------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        try:
            goal = self.goal
        except RuntimeError:
            goal = None  # no encoder in reach: there is no embedding to save
        return {} if goal is None else {"goal": goal}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if "goal" in state:
            self._goals.set_all(state["goal"])

    def clone(self) -> Self:
        """Like this one, with goals of its own from now on."""
        clone = super().clone()
        own = {"_goals": self._goals.clone(), "_average": copy.copy(self._average)}
        clone.__dict__ |= {**own, "_source": None}
        if self.embedder is not None:
            clone.__dict__["embedder"] = self.embedder.clone()
        return clone

    def set_container(self, container: Any) -> None:
        super().set_container(container)
        self._source = None

    def reset_parent(self) -> None:
        super().reset_parent()
        self._source = None

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.embedder is not None:
            if is_attached(self):
                self.embedder.shares_encoder = False
            self.embedder._apply(fn)  # torch's own way through a module's parts
        if self._last is not None:
            self._last = fn(self._last).to(self._last.dtype)
        return self

    def __getstate__(self) -> dict:
        last = None if self._last is None else self._last.detach().clone()
        return {
            **super().__getstate__(),
            "_last": last,
            "_source": None,
        }  # a copy goes on in mid-episode

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_keys}, form={self.form!r}, mode={self.mode!r})"
