"""Moved: ``python -m torchrl_vip.demonstrations.plan``."""

from torchrl_vip.moved import moved, run_moved

__getattr__ = moved(__name__, "torchrl_vip.demonstrations.plan")

if __name__ == "__main__":
    run_moved("torchrl_vip.planning.demonstrate", "torchrl_vip.demonstrations.plan")
