"""How good a reward is: metrics of goal-distance curves."""
