"""VIP rewards outside TorchRL: frame by frame for a robot's own loop, and for gymnasium."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from torch import Tensor

from torchrl_vip.goals import read_image
from torchrl_vip.transforms import EncoderLike, VIPRewardTransform, VIPTransform
from torchrl_vip.transforms.average import AverageDistance


class VIPReward:
    """Reward of each new camera frame, for one goal.

    Args:
        goal: an image, a path, an embedding ``[D]`` or a list of these.
        encoder: see :class:`VIPTransform`; None is the bundled default.
        form, scale, gamma, threshold, goal_reduction: see :class:`VIPRewardTransform`. ``scale="auto"``
            is calibrated on clips against their own last frame, ``"auto-other"`` against other episodes'.
        smoothing: share of the past in a causal average of the distance, in [0, 1); 0 is off. Rewards and
            :attr:`last_distance` then are of the average, see :class:`VIPRewardTransform`.
        **options: further options of :class:`VIPTransform`, such as ``dtype`` or ``compile``.

    Raises:
        ValueError, TypeError, FileNotFoundError: a bad goal or frame, as in VIPRewardTransform.

    Examples:
        >>> vip = VIPReward(goal=torch.zeros(120, 160, 3, dtype=torch.uint8))
        >>> vip.reward(torch.zeros(120, 160, 3, dtype=torch.uint8))
        0.0
    """

    def __init__(
        self,
        goal: Any = None,
        *,
        encoder: EncoderLike | VIPTransform = None,
        form: str = "difference",
        scale: float | str = 1.0,
        gamma: float = 0.98,
        threshold: float | None = None,
        goal_reduction: str = "mean",
        smoothing: float = 0.0,
        **options: Any,
    ):
        if not isinstance(encoder, VIPTransform):
            encoder = VIPTransform(encoder, **options)
        elif options:
            raise ValueError(
                f"options {sorted(options)} for an encoder that is a VIPTransform already."
            )
        self._core = VIPRewardTransform(
            goal,
            encoder=encoder,
            form=form,
            scale=scale,
            gamma=gamma,
            threshold=threshold,
            goal_reduction=goal_reduction,
        )
        self._z: Tensor | None = None
        self._average = AverageDistance(smoothing)

    @property
    def goal(self) -> Tensor | None:
        """The goal's embedding, ``[D]``."""
        return self._core.goal

    @property
    def last_distance(self) -> float | None:
        """Distance to the goal, embedding units, of the last frame that was given to :meth:`reward` or
        :meth:`reset`, without encoding it again; None before the first. With ``smoothing`` the average up
        to that frame."""
        if self._z is None:
            return None
        distance, goal = self._core.distance_to_goal(self._z), self._core.goal
        return float(
            distance if goal is None else self._average.now(distance, goal.to(self._z.device))
        )

    def set_goal(self, goal: Any, *, restart: bool = True) -> None:
        """Give a new goal.

        Args:
            goal: as at construction.
            restart: the next frame begins an episode. False goes on: the next reward measures from the
                last frame to the next one, both for the new goal.
        """
        self._core.set_goal(goal)
        if restart:
            self.reset()

    def reset(self, frame: Any = None) -> None:
        """Start an episode, from its first frame where there is one."""
        self._z = None if frame is None else self._embed(frame)
        self._average.start()

    def distance(self, frame: Any) -> float:
        """Distance of any frame to the goal, embedding units, without ``smoothing``; changes nothing. Of the
        frame that was just rewarded :attr:`last_distance` knows it."""
        return float(self._core.distance_to_goal(self._embed(frame)))

    def reward(self, frame: Any) -> float:
        """Reward of having come to this frame.

        Args:
            frame: uint8 ``[H, W, 3]`` or ``[3, H, W]``, array or tensor; or floating point in [0, 1].

        Returns:
            The reward since the last frame; the first frame of an episode gained nothing, so its
            ``"difference"`` is 0.
        """
        z_next = self._embed(frame)
        z = z_next if self._z is None else self._z
        self._z = z_next
        return float(self._core.reward_between(z, z_next, average=self._average))

    def _embed(self, frame: Any) -> Tensor:
        if frame is None:
            raise ValueError("no frame (None): the camera gave no picture; wanted [H, W, 3].")
        frame = read_image(frame, "frame")
        if frame.ndim != 3:
            raise ValueError(f"a frame of shape {tuple(frame.shape)}; wanted one image, [H, W, 3].")
        return self._core.embedder.embed(frame)


class VIPRewardWrapper(gymnasium.Wrapper, gymnasium.utils.RecordConstructorArgs):
    """A gymnasium environment whose reward is VIP's.

    An environment that is stepped on after an episode's end has reset itself, as gymnasium's Autoreset
    wrapper does: that step begins an episode, and its reward is 0.

    Args:
        env: renders (``render_mode="rgb_array"``), or has frames in its observation.
        goal: see :class:`VIPReward`.
        pixels: None renders; a string reads ``observation[pixels]``; ``""`` says that the
            observation is the frame.
        frames: what makes an upright RGB frame of what the environment shows, such as
            ``lambda frame: frame[::-1]`` where it comes upside down or ``lambda frame: frame[..., ::-1]``
            where it is BGR. Goals are given upright and RGB.
        mode: ``"replace"`` or ``"add"``; the environment's own reward is always in
            ``info["env_reward"]``, the distance to the goal in ``info["vip_distance"]``.
        **options: of :class:`VIPReward`.

    Raises:
        ValueError: unknown mode, or an environment that gives no frame.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        goal: Any = None,
        *,
        pixels: str | None = None,
        frames: Callable[[np.ndarray], np.ndarray] | None = None,
        mode: str = "replace",
        **options: Any,
    ):
        # What gymnasium.make needs to build the environment again from its spec.
        gymnasium.utils.RecordConstructorArgs.__init__(
            self,
            _disable_deepcopy=True,
            goal=goal,
            pixels=pixels,
            frames=frames,
            mode=mode,
            **options,
        )
        gymnasium.Wrapper.__init__(self, env)
        if mode not in ("replace", "add"):
            raise ValueError(f"mode={mode!r}; wanted 'replace' or 'add'.")
        if pixels is None and env.render_mode != "rgb_array":
            raise ValueError(
                f"the environment has render_mode={env.render_mode!r}: make it with "
                'render_mode="rgb_array", or say with pixels= where its observation has frames.'
            )
        self.pixels, self.frames, self.mode = pixels, frames, mode
        self.vip = VIPReward(goal, **options)
        self._ended = False

    def set_goal(self, goal: Any) -> None:
        """Give a new goal, from the next step on."""
        self.vip.set_goal(goal, restart=False)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self.vip.reset(self._frame(observation))
        self._ended = False
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, env_reward, terminated, truncated, info = self.env.step(action)
        frame, reward = self._frame(observation), 0.0
        if self._ended:
            self.vip.reset(frame)
        else:
            reward = self.vip.reward(frame)
        self._ended = bool(terminated or truncated)
        info = {**info, "env_reward": env_reward, "vip_distance": self.vip.last_distance}
        reward = reward + (float(env_reward) if self.mode == "add" else 0.0)
        return observation, reward, terminated, truncated, info

    def _frame(self, observation: Any) -> np.ndarray | Tensor:
        if self.pixels is None:
            frame: Any = self.env.render()
        else:
            frame = observation if self.pixels == "" else observation[self.pixels]
        if self.frames is not None:
            frame = self.frames(frame)
        return frame if isinstance(frame, Tensor) else np.asarray(frame)
