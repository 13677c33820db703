"""Demonstrations: stored (store.py), planned on the true state (plan.py), rendered to clips (render.py)."""
