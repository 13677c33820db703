"""Rewards for the episodes of a dataset: ``python -m torchrl_vip.label``."""
