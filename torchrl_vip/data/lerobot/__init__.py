"""LeRobot datasets: reading formats v2 and v3, writing v3, and writing either anew with further columns."""

from torchrl_vip.data.lerobot.reading import camera_kind, lerobot_clips, read_info

__all__ = ["camera_kind", "lerobot_clips", "read_info"]
