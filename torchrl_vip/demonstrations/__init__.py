"""Demonstrations: stored (store.py), planned on the true state (plan.py), recorded (record.py), rendered to
clips (render.py)."""
