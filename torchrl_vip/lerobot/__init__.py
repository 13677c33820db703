"""VIP as a reward model of LeRobot's factory: ``import torchrl_vip.lerobot`` registers it as "vip".

Needs ``pip install "lerobot>=0.6"``, which wants Python 3.12 and a PyTorch below 2.12. Nothing else in the
package imports it. The modules are named as LeRobot's factory looks for them, from the configuration's name.
"""

try:
    from torchrl_vip.lerobot.configuration_vip import VIPConfig
    from torchrl_vip.lerobot.modeling_vip import VIPRewardModel
    from torchrl_vip.lerobot.processor_vip import make_vip_pre_post_processors
except ImportError as error:
    raise ImportError(
        f"torchrl_vip.lerobot needs LeRobot's reward models ({error}): on Python 3.12 or newer, "
        'pip install "lerobot>=0.6"'
    ) from error

__all__ = ["VIPConfig", "VIPRewardModel", "make_vip_pre_post_processors"]
