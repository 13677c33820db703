"""Learning from steps that are there: one loop for RWR, behaviour cloning, TD3+BC and IQL."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.modules import ProbabilisticActor
from torchrl.objectives import BCLoss, IQLLoss, LossModule, SoftUpdate, TD3BCLoss

from torchrl_vip.files import write_whole
from torchrl_vip.functional import effective_sample_size
from torchrl_vip.offline.corrections import Corrections
from torchrl_vip.offline.losses import RWRLoss
from torchrl_vip.offline.policies import (
    NOISE,
    action_spec,
    make_actor,
    make_critic,
    make_value,
    observed,
)
from torchrl_vip.offline.steps import EPISODE, reward_to_come

METHODS = ("rwr", "bc", "td3bc", "iql")


@dataclass(frozen=True)
class Settings:
    """How a policy is learned. Batch size, learning rate and steps are the paper's (its appendix F).

    Attributes:
        method: one of METHODS.
        tau, temperature, clip: of :class:`torchrl_vip.offline.RWRLoss`; neither tau nor temperature is
            temperature 0.5.
        horizon: steps whose rewards add up to R of RWR; 1 is the paper's, 0 goes to the episode's end, and
            "episode" gives each step the whole episode's return. Rewards of a few steps tell an approach from
            a grasp better than success from failure, and so weigh the exact part of the work down.
        gamma: discount of TD3+BC and IQL.
        noise: of the policy's inputs in training, in parts of their deviation.
        correction: of :class:`torchrl_vip.offline.corrections.Corrections`; 0 is none.
        average: decay of the mean over updates of the policy's weights, which is what is played.
        steps, batch_size, lr: updates of Adam.
        seed: of the networks and the batches.
    """

    method: str = "rwr"
    tau: float | None = None
    temperature: float | None = None
    clip: float | None = None
    horizon: int | str = EPISODE
    gamma: float = 0.98
    noise: float = NOISE
    correction: float = 0.15
    average: float = 0.999
    steps: int = 20_000
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(
                f"method {self.method!r} is unknown: wanted one of {', '.join(METHODS)}."
            )
        for name, least in (("steps", 1), ("batch_size", 1), ("horizon", 0), ("correction", 0)):
            value = getattr(self, name)
            if value != EPISODE and value < least:
                raise ValueError(f"{name}={value} is invalid: wanted {least} or more.")
        if not 0 <= self.average < 1:
            raise ValueError(f"average={self.average} is invalid: wanted 0 or more, below 1.")


class Learner:
    """A policy, its loss and its optimizer.

    Args:
        steps: of :func:`torchrl_vip.offline.read_steps`. With "vip_views" ``[N, V, D]``, of
            :func:`torchrl_vip.offline.shifted_views`, a step is seen by one of these or as it is.
        settings: how to learn.
        actor: another policy than that of :func:`torchrl_vip.offline.make_actor`, such as one of pixels; what
            it reads is in the steps.

    Attributes:
        actor: the policy, from "vip_vec" and "state" to "action": the mean of what was trained.
        step: updates done.
        corrections: what is done to actions and proprioception in training.
        about: of RWR "effective_sample_size" (a share of all steps) and "largest_weight" (of mean 1).

    Raises:
        ValueError: see :class:`torchrl_vip.offline.RWRLoss`.
    """

    def __init__(
        self, steps: TensorDict, settings: Settings, actor: TensorDictModule | None = None
    ) -> None:
        torch.manual_seed(settings.seed)
        steps = steps.copy()  # the caller's stay as they are
        self.settings, self.step = settings, 0
        self.about: dict[str, float] = {}
        self._actor = actor or make_actor(
            steps, stochastic=settings.method == "iql", noise=settings.noise
        )
        self._average = AveragedModel(self._actor, multi_avg_fn=partial(_average, settings.average))
        self.actor: TensorDictModule = self._average.module.eval()
        self.corrections = Corrections(steps, settings.correction)
        steps["corrected"] = self.corrections.corrected
        self.weights: Tensor | None = None
        self.loss = self._make_loss(steps)
        self.targets = None
        if settings.method in ("td3bc", "iql"):
            self.loss.make_value_estimator(gamma=settings.gamma)
            self.targets = SoftUpdate(self.loss, tau=0.005)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=settings.lr, fused=True)
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(len(steps)), batch_size=settings.batch_size
        )
        self.buffer.extend(steps)

    def _make_loss(self, steps: TensorDict) -> LossModule:
        """The method's loss; for RWR "reward_to_come" is added to these steps."""
        chosen, actor = self.settings, self._actor
        if chosen.method == "bc":
            with warnings.catch_warnings():  # of a name that BCLoss forgets to announce
                warnings.filterwarnings("ignore", "The name target_actor_network_params")
                return BCLoss(actor, loss_function="l2")
        if chosen.method == "td3bc":
            return TD3BCLoss(actor, make_critic(steps), action_spec=action_spec(steps))
        if chosen.method == "iql":
            # temperature and expectile of Kostrikov et al., ICLR 2022, for small datasets
            nets = make_critic(steps), make_value(steps)
            return IQLLoss(actor, *nets, temperature=3.0, expectile=0.7)
        temperature = (
            0.5 if chosen.tau is None and chosen.temperature is None else chosen.temperature
        )
        loss = RWRLoss(
            actor, tau=chosen.tau, temperature=temperature, clip=chosen.clip, loss_function="l2"
        )
        R = reward_to_come(steps["next", "reward"], steps["episode"], chosen.horizon or None)
        self.weights = loss.fit(R)
        loss.set_keys(reward="reward_to_come")
        steps["reward_to_come"] = R
        share = effective_sample_size(self.weights) / len(steps)
        self.about = {
            "effective_sample_size": share.item(),
            "largest_weight": self.weights.max().item(),
        }
        return loss

    def learn(self) -> Iterator[TensorDict]:
        """Update until all updates are done, and give what the loss says of each, without gradient."""
        for _ in range(self.step, self.settings.steps):
            losses = self.loss(self._sample())
            total = sum(value for name, value in losses.items() if name.startswith("loss_"))
            self.optimizer.zero_grad()
            total.backward()
            self.optimizer.step()
            if self.targets is not None:
                self.targets.step()
            self._average.update_parameters(self._actor)
            self.step += 1
            yield losses.detach()

    def _sample(self) -> TensorDict:
        """A batch, seen shifted and off its way."""
        batch = self.buffer.sample()
        if "vip_views" in batch.keys():
            views = torch.cat([batch["vip_vec"].unsqueeze(1), batch.pop("vip_views")], 1)
            chosen = torch.randint(views.shape[1], (len(views),))
            batch["vip_vec"] = views[torch.arange(len(views)), chosen]
        if self.corrections:
            self.corrections.apply(batch)
        return batch

    def save(self, file: Path) -> None:
        """A checkpoint, from which :meth:`restore` goes on to the same bits."""
        state = {
            "settings": asdict(self.settings),
            "loss": self.loss.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
        }
        write_whole(file, partial(torch.save, state))

    def restore(self, file: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is damaged, or of other settings or shapes.
        """
        try:
            state = torch.load(file, weights_only=True)
            then, now = state["settings"], asdict(self.settings)
            other = [f"{k}={then.get(k)}, now {now[k]}" for k in now if then.get(k) != now[k]]
            if other := [text for text in other if not text.startswith("steps=")]:
                raise ValueError(f"it was begun with {'; '.join(other)}")
            self.loss.load_state_dict(state["loss"])
            self._average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            self.step = state["step"]
        except Exception as error:  # torch.load raises many types for a bad file
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise ValueError(f"{file} cannot be gone on from: {reason}.") from error


def _average(decay: float, means: list[Tensor], now: list[Tensor], count: Tensor) -> None:
    """The mean over updates; of the first ones a plain one, nearly, so that short runs have it too."""
    decay = min(decay, (1 + int(count)) / (10 + int(count)))
    torch._foreach_lerp_(means, now, 1 - decay)


def save_policy(actor: TensorDictModule, steps: TensorDict, file: Path, **about: Any) -> None:
    """Write a policy, with the shapes and bounds that :func:`load_policy` builds it from.

    Args:
        about: what else to keep, such as the encoder's name: numbers and strings.
    """
    spec = action_spec(steps).space
    state = {
        "inputs": {key: steps[key].shape[-1] for key in observed(steps)},
        "bounds": torch.stack([spec.low, spec.high]),
        "stochastic": isinstance(actor, ProbabilisticActor),
        "weights": {name: value.detach() for name, value in actor.state_dict().items()},
        "about": about,
    }
    write_whole(file, partial(torch.save, state))


def load_policy(file: str | Path) -> tuple[TensorDictModule, dict[str, Any]]:
    """A policy that :func:`save_policy` wrote, frozen and without noise, and what was kept about it.

    Raises:
        ValueError: no such file, or it is damaged.
    """
    try:
        state = torch.load(file, weights_only=True)
        shapes = {key: torch.zeros(2, size) for key, size in state["inputs"].items()}
        steps = TensorDict({**shapes, "action": state["bounds"]}, [2])
        actor = make_actor(steps, stochastic=state["stochastic"])
        actor.load_state_dict(state["weights"])
    except Exception as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise ValueError(f"{file} is no policy that save_policy wrote: {reason}.") from error
    return actor.eval().requires_grad_(False), state["about"]
