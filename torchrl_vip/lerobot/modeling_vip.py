"""VIP as a reward model of LeRobot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lerobot.rewards.pretrained import PreTrainedRewardModel
from torch import Tensor

from torchrl_vip.encoders import VIPEncoder
from torchrl_vip.functional import check_form, goal_reward
from torchrl_vip.goals import ONE_FOR_ALL, is_image, read_image
from torchrl_vip.lerobot.configuration_vip import COMPARING, VIPConfig
from torchrl_vip.transforms.reward import CALIBRATED_SCALES
from torchrl_vip.weights import CheckpointError, build_encoder, config_of, load_vip


class VIPRewardModel(PreTrainedRewardModel):
    """Reward of camera frames by their distance to a goal image.

    It is frozen: lerobot-train refuses it, as every model that needs no training. ``save_pretrained`` writes
    config.json and model.safetensors, with the encoder and the goal's embedding: the folder needs neither
    the checkpoint nor the image.

    Args:
        config: see :class:`VIPConfig`.
        **unused: what LeRobot's factory passes on, such as ``dataset_stats``.

    Raises:
        CheckpointError, ValueError: the encoder, as of :func:`torchrl_vip.load_vip`.
        FileNotFoundError, ValueError: the goal image; or a scale or threshold that the checkpoint lacks.

    Examples:
        >>> config = VIPConfig(goal="goal.png")  # doctest: +SKIP
        >>> frames = torch.zeros(4, 3, 120, 160)  # doctest: +SKIP
        >>> VIPRewardModel(config).compute_reward({config.image_key: frames}).shape  # doctest: +SKIP
        torch.Size([4])
    """

    name = "vip"
    config_class = VIPConfig

    def __init__(self, config: VIPConfig, **unused: Any) -> None:
        super().__init__(config)
        if config.network is None:
            encoder = load_vip(config.encoder, revision=config.encoder_revision)
        else:
            encoder = _without_weights(config.network)
        self.encoder = encoder.requires_grad_(False)
        self.register_buffer("goal", torch.full((encoder.dim,), torch.nan))
        self.scale = _scale(config.scale, encoder.config)
        threshold = encoder.config.get("success_threshold")
        self.threshold = threshold if config.threshold is None else config.threshold
        check_form(config.form, self.threshold)
        if config.goal is not None and config.network is None:
            self.set_goal(config.goal)
        self.eval()

    @torch.no_grad()
    def set_goal(self, goal: Any) -> None:
        """Give a new goal.

        Args:
            goal: an image (path, PIL, array or tensor, uint8 or [0, 1]), an embedding ``[D]``, or a list of
                these, whose mean embedding it is.

        Raises:
            FileNotFoundError, ValueError, TypeError: no image, or one of wrong rank, channels or range.
        """
        goals = goal if isinstance(goal, list | tuple) else [goal]
        if not goals:
            raise ValueError("an empty list of goals; wanted at least one.")
        embedding = torch.stack([self._embed_goal(read_image(one)) for one in goals]).mean(0)
        if not embedding.isfinite().all():
            raise ValueError(
                "the goal's embedding is not finite: the encoder has no weights yet. Load them with "
                "VIPRewardModel.from_pretrained(folder), or give pretrained_path in the configuration."
            )
        self.goal.copy_(embedding)

    @torch.no_grad()
    def compute_reward(self, batch: dict[str, Tensor]) -> Tensor:
        """Rewards of a batch of frames.

        Args:
            batch: under ``image_key`` frames ``[B, C, H, W]`` or clips ``[B, T, C, H, W]``, also with the
                channels last; uint8 0-255 or floating point in [0, 1]. Of a clip the last frame counts, and
                the one before where the form compares. At an episode's first frame LeRobot repeats it, so
                that ``"difference"`` is 0.

        Returns:
            float32 ``[B]``, on the model's device.

        Raises:
            KeyError: no such camera in the batch.
            ValueError: no goal yet; frames of another rank or range; one frame where two are compared.
        """
        if not self.goal.isfinite().all():
            raise ValueError(
                "the reward model has no goal: give goal= in the configuration, call set_goal(...), or load "
                "one that was saved with from_pretrained(...)."
            )
        clips = self._clips(batch)
        compares = self.config.form in COMPARING
        z = self.encoder(clips[:, -2:] if compares else clips[:, -1:])
        return goal_reward(
            z[:, 0],
            z[:, -1],
            self.goal,
            form=self.config.form,
            scale=self.scale,
            gamma=self.config.gamma,
            threshold=self.threshold,
        )

    def train(self, mode: bool = True) -> VIPRewardModel:
        """Stay in evaluation mode, whatever ``mode``: a reward must not depend on its batch."""
        return super().train(False)

    def _embed_goal(self, goal: Tensor) -> Tensor:
        goal = goal.to(self.goal.device)
        z = self.encoder(goal) if is_image(goal, self.encoder.dim, ONE_FOR_ALL) else goal
        if z.shape != self.goal.shape:
            raise ValueError(
                f"a goal of shape {tuple(goal.shape)}; wanted one image, or an embedding "
                f"[{self.encoder.dim}]. Several are a list."
            )
        return z

    def _clips(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Frames of the batch, ``[B, T, ...]``, on the model's device."""
        key = self.config.image_key
        if key not in batch:
            raise KeyError(f"the batch has no {key!r}, the image_key; it has {sorted(batch)}.")
        frames = batch[key]
        if frames.ndim not in (4, 5):
            raise ValueError(
                f"{key} of shape {tuple(frames.shape)}; wanted [B, C, H, W] or [B, T, C, H, W]."
            )
        clips = frames if frames.ndim == 5 else frames.unsqueeze(1)
        if self.config.form in COMPARING and clips.shape[1] < 2:
            raise ValueError(
                f"form={self.config.form!r} compares two frames; got {key} of shape {tuple(frames.shape)}. "
                "Wanted [B, T, C, H, W] with T of 2 or more, as LeRobotDataset gives it with "
                f"delta_timestamps={{{key!r}: [-1 / fps, 0]}}; or form='distance'."
            )
        return clips.to(self.goal.device)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        # The folder stands alone: the encoder and the goal are in model.safetensors.
        own = {"encoder": None, "encoder_revision": None, "goal": None}
        config = replace(self.config, **own, network=config_of(self.encoder))
        config._save_pretrained(save_directory)

    @classmethod
    def _load_as_safetensor(
        cls, model: VIPRewardModel, model_file: str, map_location: str, strict: bool
    ) -> VIPRewardModel:
        try:  # strict always: half of the weights would be a network of noise
            model = super()._load_as_safetensor(model, model_file, map_location, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"{model_file} does not fit a {model.encoder.name} of dim {model.encoder.dim}: read the "
                f"configuration from the same folder, RewardModelConfig.from_pretrained(...). ({error})"
            ) from error
        if model.config.goal is not None:
            model.set_goal(model.config.goal)
        return model


def _without_weights(network: Mapping[str, Any]) -> VIPEncoder:
    """The encoder of a saved reward model, to be filled; until then it gives NaN, not noise."""
    try:
        encoder = build_encoder(network)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the configuration's network cannot be built: {error}. It is written by save_pretrained."
        ) from error
    for weight in encoder.parameters():
        weight.data.fill_(torch.nan)
    return encoder


def _scale(scale: float | str, config: Mapping[str, Any]) -> float:
    if not isinstance(scale, str):
        return scale
    field = CALIBRATED_SCALES[scale]
    if config.get(field) is None:
        raise ValueError(f"scale={scale!r}: this encoder's config has no {field}; give a number.")
    return config[field]
