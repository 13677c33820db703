"""The configuration of VIP as a reward model of LeRobot; importing it registers the name "vip"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.rewards import RewardModelConfig
from lerobot.utils.constants import OBS_IMAGES

from torchrl_vip.functional import check_form
from torchrl_vip.transforms.reward import CALIBRATED_SCALES

COMPARING = ("difference", "potential")
"""Forms of the reward that look at two frames, one after the other."""


@RewardModelConfig.register_subclass("vip")
@dataclass
class VIPConfig(RewardModelConfig):
    """Configuration of :class:`VIPRewardModel`.

    Args:
        image_key: the camera's key in the batch.
        goal: path of a goal image, or of several, whose mean embedding it is. With a reward model that is
            loaded it replaces the stored one. None waits for ``set_goal``.
        encoder: what :func:`torchrl_vip.load_vip` opens: a bundled name, a folder, a repository of the Hub;
            None is the bundled default.
        encoder_revision: of an encoder on the Hub: a branch, a tag or a commit.
        form: see :func:`torchrl_vip.goal_reward`. ``"distance"`` judges each frame by itself;
            ``"difference"`` and ``"potential"`` compare with the frame before, which LeRobot's loader then
            brings along.
        scale: factor on the reward; ``"auto"`` and ``"auto-other"`` are the checkpoint's, see
            :class:`torchrl_vip.VIPRewardTransform`.
        gamma: discount of ``form="potential"``.
        threshold: of ``form="sparse"``, in embedding units; None is the checkpoint's.
        network: the encoder's own config.json, of a reward model that was saved; not to be given by hand.

    Raises:
        ValueError: an unknown form or scale; an encoder beside the one that was saved.
    """

    image_key: str = f"{OBS_IMAGES}.top"
    goal: str | list[str] | None = None
    encoder: str | None = None
    encoder_revision: str | None = None
    form: str = "distance"
    scale: float | str = 1.0
    gamma: float = 0.98
    threshold: float | None = None
    network: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_form(self.form, 0.0)
        if isinstance(self.scale, str) and self.scale not in CALIBRATED_SCALES:
            raise ValueError(
                f"scale={self.scale!r}; wanted a number or one of {', '.join(CALIBRATED_SCALES)}."
            )
        if self.encoder is not None and self.network is not None:
            raise ValueError(
                f"encoder={self.encoder!r} for a reward model that was saved with its own "
                f"{self.network.get('backbone')}: leave it out, or make a new reward model."
            )
        frame = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 224, 224))  # of any size, really
        self.input_features.setdefault(self.image_key, frame)
        reward = PolicyFeature(type=FeatureType.REWARD, shape=(1,))
        self.output_features.setdefault("reward", reward)

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """Frames that LeRobot's loader brings along: the one before, where the form compares."""
        return [-1, 0] if self.form in COMPARING else None

    def validate_features(self) -> None:
        """Raise ValueError unless ``image_key`` is one of the input features."""
        if self.image_key not in self.input_features:
            raise ValueError(
                f"image_key={self.image_key!r}; wanted one of {list(self.input_features)}."
            )
