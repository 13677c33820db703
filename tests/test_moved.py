"""Imports and commands of before, whose names are in other modules now."""

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "old, name, new",
    [
        ("encoders", "merge_heads", "merging"),
        ("functional", "mean_metric", "merging"),
        ("data.render", "read_manifest", "demonstrations.render"),
        ("planning.demonstrate", "PlanningSim", "demonstrations.plan"),
        ("envs.demonstrations", "PlannedSim", "demonstrations.store"),
        ("envs.demonstrations", "write_demonstrations", "demonstrations.store"),
    ],
)
def test_an_old_import_works_and_names_the_new_one(old: str, name: str, new: str) -> None:
    if old not in ("encoders", "functional"):
        pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')
    module = importlib.import_module(f"torchrl_vip.{old}")
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now torchrl_vip.{new}.{name}"):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(f"torchrl_vip.{new}"), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize(
    "old, new",
    [("data.render", "demonstrations.render"), ("planning.demonstrate", "demonstrations.plan")],
)
def test_an_old_command_works_and_names_the_new_one(old: str, new: str) -> None:
    pytest.importorskip("gymnasium_robotics", reason='pip install "torchrl-vip[robotics]"')
    command = (sys.executable, "-m", f"torchrl_vip.{old}", "--help")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and f"torchrl_vip.{new} --suite" in done.stdout
    assert f"note: python -m torchrl_vip.{old} is now python -m torchrl_vip.{new}" in done.stderr


def test_the_old_name_of_holding_still_works() -> None:
    pytest.importorskip("mujoco", reason='pip install "torchrl-vip[metaworld]"')
    from torchrl_vip.envs.simulator import Simulator

    class Fingers(Simulator):
        def hold_still(self, action):
            return 2 * action

    Fingers.__abstractmethods__ = frozenset()
    with pytest.warns(DeprecationWarning, match="now hold_still"):
        assert object.__new__(Fingers).still(3) == 6
