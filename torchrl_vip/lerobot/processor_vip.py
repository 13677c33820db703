"""What LeRobot runs before and after VIP as a reward model."""

from __future__ import annotations

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyProcessorPipeline,
    policy_action_to_transition,
)
from lerobot.utils.constants import (
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
)
from torch import Tensor

from torchrl_vip.lerobot.configuration_vip import VIPConfig


def make_vip_pre_post_processors(
    config: VIPConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """What LeRobot runs before and after :class:`VIPRewardModel`.

    Before: a batch dimension for a single frame, and the device. The encoder normalises frames by itself.
    After: nothing.

    Args:
        config: of the reward model.
        dataset_stats: not used.
    """
    before = PolicyProcessorPipeline(
        steps=[
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device=config.device or "cpu"),
        ],
        name=POLICY_PREPROCESSOR_DEFAULT_NAME,
    )
    after = PolicyProcessorPipeline(
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME, to_transition=policy_action_to_transition
    )
    return before, after
