"""Imports and commands of before, whose names are in other modules now."""

import importlib

import pytest


@pytest.mark.parametrize(
    "old, name, new",
    [
        ("encoders", "merge_heads", "merging"),
        ("functional", "mean_metric", "merging"),
    ],
)
def test_an_old_import_works_and_names_the_new_one(old: str, name: str, new: str) -> None:
    module = importlib.import_module(f"torchrl_vip.{old}")
    with pytest.warns(DeprecationWarning, match=f"{old}.{name} is now torchrl_vip.{new}.{name}"):
        found = getattr(module, name)
    assert found is getattr(importlib.import_module(f"torchrl_vip.{new}"), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018
