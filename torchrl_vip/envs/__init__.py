"""Manipulation suites as pixel environments, one module each; a suite's packages load when it is used."""

from __future__ import annotations

import importlib

SUITES = ("metaworld", "fetch", "dm_manipulation", "adroit", "kitchen", "tabletop")


def load_suite(name: str):
    """The module of a suite: ``list_tasks``, ``make_env``, ``goal_image`` and ``SIMULATOR``.

    Raises:
        ValueError: no such suite.
        ImportError: its packages are not installed; the message says which.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}; choose from {', '.join(SUITES)}")
    return importlib.import_module(f"torchrl_vip.envs.{name}")
