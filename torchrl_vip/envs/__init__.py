"""Simulated suites, one ``make_env`` file each; every suite is an optional install."""
