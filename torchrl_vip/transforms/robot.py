"""MaskRobot: frames in which the robot is replaced by what was last seen behind it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tensordict import NestedKey, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data.tensor_specs import Composite
from torchrl.envs.transforms import Transform

from torchrl_vip.masking import BehindRobot
from torchrl_vip.transforms.keys import as_keys, flagged_rows, reset_rows, step_rows
from torchrl_vip.transforms.placement import environment_of, last_frames_arrive

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's own from Python 3.11 on


class MaskRobot(Transform):
    """Take the robot out of the frames, before a :class:`VIPTransform` embeds them.

    Masked pixels show what was last seen there in this environment and episode. Those never seen show the
    background, or else the mean colour of what the first frame shows, with one warning. A partial reset
    forgets what was seen in the rows being reset alone.

    What the robot pushes while it covers it stays where it was last seen. The distance then sees a change
    when the robot moves away. Goal images are given without the robot: taken by hand, or by
    :func:`torchrl_vip.mask_robot`.

    Args:
        mask_key: of the masks, one for each camera: bool or uint8 ``[*B, H, W]`` or ``[*B, H, W, 1]``, not 0
            where the robot is. The suites write "robot_mask" with ``make_env(..., robot_mask=True)``.

    Keyword Args:
        in_keys: frames, uint8 or floating point, ``[*B, H, W, 3]`` or ``[*B, 3, H, W]``; one for each
            camera, "pixels" by default. They are replaced.
        background: a picture without the robot by the same camera and of the same size, or its path; for
            several cameras a dict from their key. One with the batch shape in front is one for each
            environment.
        grow: pixels by which masks are made larger on all sides, where they are not exact.

    Raises:
        KeyError: no frames or masks under these keys; a background for a camera that is none.
        ValueError: masks, frames or backgrounds of shapes that do not belong together; an environment
            without a state of its own; called outside of an environment.
        TypeError: masks that are neither bool nor uint8.

    Examples:
        >>> env = kitchen.make_env("sdoor_open", robot_mask=True)  # doctest: +SKIP
        >>> env = TransformedEnv(env, Compose(MaskRobot(), VIPTransform()))  # doctest: +SKIP
        >>> goal = kitchen.goal_image("sdoor_open", camera="default/no-robot")  # doctest: +SKIP
        >>> env.append_transform(VIPRewardTransform(goal))  # doctest: +SKIP
    """

    def __init__(
        self,
        mask_key: NestedKey | Sequence[NestedKey] = "robot_mask",
        *,
        in_keys: Sequence[NestedKey] | None = None,
        background: Any = None,
        grow: int = 0,
    ):
        in_keys = [unravel_key(key) for key in as_keys("pixels" if in_keys is None else in_keys)]
        super().__init__(in_keys=in_keys, out_keys=in_keys)
        self.mask_keys = [unravel_key(key) for key in as_keys(mask_key)]
        if len(self.mask_keys) != len(in_keys):
            raise ValueError(
                f"mask_key={self.mask_keys} for the cameras {in_keys}: wanted one for each, as a list."
            )
        backgrounds = (
            background if isinstance(background, Mapping) else dict.fromkeys(in_keys, background)
        )
        backgrounds = {unravel_key(key): picture for key, picture in backgrounds.items()}
        if unknown := set(backgrounds) - set(in_keys):
            raise KeyError(
                f"a background for {sorted(map(str, unknown))}; the cameras are {in_keys}."
            )
        self._behind = {key: BehindRobot(backgrounds.get(key), grow=grow) for key in in_keys}

    def _reset(
        self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        self._check_place()
        for key, frames, masks in self._read(tensordict_reset):
            rows = reset_rows(tensordict, tensordict_reset.batch_size, key)
            tensordict_reset.set(key, self._behind[key].start(frames, masks, rows))
        return tensordict_reset

    def _step(self, tensordict: TensorDictBase, next_tensordict: TensorDictBase) -> TensorDictBase:
        batch = next_tensordict.batch_size
        stepped, is_last_seen = (
            step_rows(tensordict, batch),
            last_frames_arrive(environment_of(self)),
        )
        for key, frames, masks in self._read(next_tensordict):
            behind = self._behind[key]
            shown = behind.step(frames, masks, stepped)
            done = None if is_last_seen else flagged_rows(next_tensordict, "done", batch, key)
            if done is not None and done.any():  # these frames are the next episode's first
                shown = behind.start(frames, masks, done)
            next_tensordict.set(key, shown)
        return next_tensordict

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        raise ValueError(
            f"{type(self).__name__} outside of an environment: the rows of a replay buffer are in no order, "
            "so that nothing is known of the frames before. Store what the environment shows."
        )

    def _read(self, tensordict: TensorDictBase) -> list[tuple[NestedKey, Tensor, Tensor]]:
        """Key, frames and masks of every camera."""
        found = []
        for key, mask_key in zip(self.in_keys, self.mask_keys, strict=True):
            frames, masks = tensordict.get(key, None), tensordict.get(mask_key, None)
            if frames is None or masks is None:
                raise KeyError(_absent(key if frames is None else mask_key, tensordict))
            found.append((key, frames, masks))
        return found

    def _check_place(self) -> None:
        environment = environment_of(self)
        if environment is not None and not environment.batch_locked:
            raise ValueError(
                f"{type(self).__name__} in an environment without a state of its own (batch_locked=False): "
                "its rows may be another's at every step."
            )

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        for key in (*self.in_keys, *self.mask_keys):
            if observation_spec.get(key, None) is None:
                raise KeyError(_absent(key, observation_spec))
        return observation_spec

    # -- state ------------------------------------------------------------------------------------

    def clone(self) -> Self:
        """Like this one, with a memory of its own from now on."""
        clone = super().clone()
        clone.__dict__["_behind"] = {key: copy.copy(one) for key, one in self._behind.items()}
        return clone

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_keys}, mask_key={self.mask_keys})"


def _absent(key: NestedKey, tensordict: TensorDictBase | Composite) -> str:
    return (
        f"MaskRobot found no {key!r}; there is {sorted(map(str, tensordict.keys(True, True)))}. Name frames "
        "with in_keys= and their masks with mask_key=, and put it before the VIPTransform."
    )
