"""Moved: ``python -m torchrl_vip.demonstrations.render``."""

from torchrl_vip.moved import moved, run_moved

__getattr__ = moved(__name__, "torchrl_vip.demonstrations.render")

if __name__ == "__main__":
    run_moved("torchrl_vip.data.render", "torchrl_vip.demonstrations.render")
