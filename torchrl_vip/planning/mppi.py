"""MPPI and CEM over action sequences; NumPy only, no simulator inside.

Shapes: N candidates of H steps, actions [N, H, A] in [-1, 1], scores [N], higher is better. What
scores them is a function, ``evaluate(actions) -> scores``: see :mod:`torchrl_vip.planning.rollout`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

Evaluate = Callable[[np.ndarray], np.ndarray]
"""``evaluate(actions [N, H, A]) -> scores [N]``."""


def filtered_noise(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    beta: Sequence[float] = (0.25, 0.8, 0.0),
) -> np.ndarray:
    """Smooth noise [N, H, A]: e_t = beta_0 n_t + beta_1 e_{t-1} + beta_2 e_{t-2}, n_t normal.

    The first step is not filtered (e_0 = n_0): it is the only one that is executed, and should
    explore as widely as the rest.
    """
    noise = rng.normal(size=shape)
    for t in range(1, shape[1]):
        before = noise[:, t - 2] if t > 1 else 0.0
        noise[:, t] = beta[0] * noise[:, t] + beta[1] * noise[:, t - 1] + beta[2] * before
    return noise


def mppi_weights(scores: np.ndarray, kappa: float, scale: bool = True) -> np.ndarray:
    """Weights [N] proportional to exp(kappa (R - max R)), of sum 1.

    With ``scale`` the scores are first divided by their standard deviation, so that kappa means
    the same for rewards in metres and distances between embeddings.
    """
    advantage = scores - scores.max()
    if scale:
        advantage = advantage / max(float(scores.std()), 1e-12)
    weights = np.exp(kappa * advantage)
    return weights / weights.sum()


def in_deviations(distances: np.ndarray, weights: Sequence[float] | None = None) -> np.ndarray:
    """Distances of candidates by V views, ``[*N, V]``, to one of each, ``[*N]``: each view's in parts of its
    standard deviation over all candidates, so that none drowns the others, added up.

    A view in which the candidates differ by rounding alone (less than a thousandth of its mean) says
    nothing and is left out.

    Args:
        weights: of the V views; 1 each if not given.
    """
    over = tuple(range(distances.ndim - 1))
    spread = distances.std(over)
    parts = np.where(spread > 1e-3 * distances.mean(over), 1 / np.maximum(spread, 1e-12), 0.0)
    return (distances * parts * (1.0 if weights is None else np.asarray(weights))).sum(-1)


class Planner(ABC):
    """A mean action sequence that :meth:`plan` improves and moves on by one step.

    Attributes:
        mean: ``[H, A]``, the sequence that the next plan starts from.

    Args:
        action_size: A.
        horizon: H, steps that a candidate looks ahead.
        trajectories: N, candidates an iteration.
        iterations: times that a plan samples and refits.
        sigma: standard deviation of the noise before its filter, one number or one an action [A].
        beta: the filter, see :func:`filtered_noise`.
        rest: the action [A] that the mean starts from, and is filled up with at its end (0).
        seed: plans repeat exactly.

    Raises:
        ValueError: a size below 1, a negative or infinite sigma.
    """

    def __init__(
        self,
        action_size: int,
        *,
        horizon: int = 12,
        trajectories: int = 32,
        iterations: int = 1,
        sigma: float | Sequence[float] = 1.0,
        beta: Sequence[float] = (0.25, 0.8, 0.0),
        rest: float | Sequence[float] = 0.0,
        seed: int = 0,
    ) -> None:
        sizes = {"horizon": horizon, "trajectories": trajectories, "iterations": iterations}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; wanted 1 or more")
        if not (np.isfinite(sigma).all() and np.min(sigma) >= 0):
            raise ValueError(f"sigma is {sigma}; wanted 0 or more")
        self.shape = (trajectories, horizon, action_size)
        self.iterations, self.beta = iterations, tuple(beta)
        self.sigma = np.broadcast_to(np.asarray(sigma, float), (action_size,))
        self.rest = np.broadcast_to(np.asarray(rest, float), (action_size,))
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Forgets the last plan: a new episode begins."""
        self.rng = np.random.default_rng(seed)
        self.mean = np.tile(self.rest, (self.shape[1], 1))

    def plan(self, evaluate: Evaluate) -> np.ndarray:
        """The action [A] to take now; the rest of the plan warm-starts the next one.

        Raises:
            ValueError: ``evaluate`` returned another shape, or nothing finite.
        """
        mean = self.improve(evaluate)
        self.mean = np.concatenate([mean[1:], self.rest[None]])
        return mean[0].copy()

    @abstractmethod
    def improve(self, evaluate: Evaluate) -> np.ndarray:
        """A better mean [H, A]."""

    def _sample(self, sigma: np.ndarray, mean: np.ndarray) -> np.ndarray:
        noise = sigma * filtered_noise(self.rng, self.shape, self.beta)
        noise[0] = 0.0  # what is already planned competes too
        return np.clip(mean + noise, -1.0, 1.0)

    def _score(self, evaluate: Evaluate, actions: np.ndarray) -> np.ndarray:
        scores = np.asarray(evaluate(actions), float)
        if scores.shape != self.shape[:1]:
            raise ValueError(f"scores of shape {scores.shape}; wanted {self.shape[:1]}")
        finite = np.isfinite(scores)
        if not finite.any():
            raise ValueError("no score is finite")
        # a simulator that blew up is as bad as the worst that did not
        return np.where(finite, scores, scores[finite].min())


class MPPI(Planner):
    """Model-predictive path integral control (Williams et al. 2017): the mean of all candidates,
    weighted by :func:`mppi_weights`.

    Args:
        kappa: inverse temperature; large follows the best candidate.
        scale: see :func:`mppi_weights`.
        **settings: see :class:`Planner`.

    Example:
        >>> planner = MPPI(2, horizon=4, trajectories=64)
        >>> bool((planner.plan(lambda actions: actions.sum((1, 2))) > 0).all())
        True
    """

    def __init__(
        self, action_size: int, *, kappa: float = 5.0, scale: bool = True, **settings
    ) -> None:
        super().__init__(action_size, **settings)
        self.kappa, self.scale = kappa, scale

    def improve(self, evaluate: Evaluate) -> np.ndarray:
        mean = self.mean
        for _ in range(self.iterations):
            actions = self._sample(self.sigma, mean)
            weights = mppi_weights(self._score(evaluate, actions), self.kappa, self.scale)
            mean = np.einsum("n,nha->ha", weights, actions)
        return mean


class CEM(Planner):
    """Cross-entropy method (Rubinstein 1999): each iteration refits mean and spread to the best.

    Its filter is (0.6, 0.8, 0) unless given: noise of the same spread at every step, or each refit
    would shrink the spread by itself.

    Args:
        elites: how many candidates are the best.
        floor: smallest standard deviation, so that later iterations still search.
        **settings: see :class:`Planner`; ``iterations`` is 4 unless given.
    """

    def __init__(
        self, action_size: int, *, elites: int = 8, floor: float = 0.02, **settings
    ) -> None:
        super().__init__(action_size, **{"iterations": 4, "beta": (0.6, 0.8, 0.0), **settings})
        if not 0 < elites <= self.shape[0]:
            raise ValueError(f"elites is {elites}; wanted 1 to {self.shape[0]}")
        self.elites, self.floor = elites, floor

    def improve(self, evaluate: Evaluate) -> np.ndarray:
        mean, sigma = self.mean, self.sigma
        for _ in range(self.iterations):
            actions = self._sample(sigma, mean)
            best = np.argsort(-self._score(evaluate, actions), kind="stable")[: self.elites]
            mean = actions[best].mean(0)
            sigma = np.maximum(actions[best].std(0), self.floor * (self.sigma > 0))
        return mean
