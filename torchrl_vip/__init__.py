"""VIP for TorchRL: rewards for robots from nothing but a goal image."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

if Path(sys.argv[0] if sys.argv else "").stem != "torchrl-vip":
    from torchrl_vip.names import *  # noqa: F403  (names.py says which)
    from torchrl_vip.names import __all__ as __all__

# The command `torchrl-vip` alone imports what it needs when it needs it: else its --help takes seconds.
# Elsewhere all is imported at once: torchrl crashes when it is imported after MuJoCo's first picture.


def __getattr__(name: str) -> Any:
    if name.startswith("__") or importlib.util.find_spec(f"{__name__}.{name}"):
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}"
        )  # a module is imported
    return getattr(importlib.import_module("torchrl_vip.names"), name)
