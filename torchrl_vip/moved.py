"""Names and commands that have moved to another module: the old ones work and say where they are now."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Collection
from typing import Any


def moved(old: str, new: str, names: Collection[str] | None = None) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that some of its names have left.

    Args:
        old: that module, its ``__name__``.
        new: the module where they are now; imported when one of them is asked for.
        names: those that moved; None for all of the new module's.

    Example:
        >>> __getattr__ = moved(__name__, "torchrl_vip.merging", ["merge_heads"])
    """

    def find(name: str) -> Any:
        if name.startswith("__") or (names is not None and name not in names):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(new), name)
        warnings.warn(f"{old}.{name} is now {new}.{name}", DeprecationWarning, stacklevel=2)
        return value

    return find


def run_moved(old: str, new: str) -> None:
    """What ``python -m old`` does: a note on stderr, then the command where it is now."""
    print(f"note: python -m {old} is now python -m {new}", file=sys.stderr)
    importlib.import_module(new).main()
