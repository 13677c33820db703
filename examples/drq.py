"""DrQ-v2 with a VIP reward: from pixels, or with ``--observation embedding`` on frozen embeddings.

    python examples/drq.py --out run
    python examples/drq.py --out run --resume
    python examples/drq.py --observation embedding --out other
    python examples/drq.py --out two --processes 2                      # two workers collect
    python examples/drq.py --out many --processes 16 --collector ray    # on a Ray cluster

Random shifts, n-step returns, twin critics, noise that fades: Yarats et al., arXiv 2107.09645.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import common
import torch
import workers
from common import Config, TrainingReward, arg
from runs import Run
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import (
    CatFrames,
    EnvBase,
    MultiStepTransform,
    PermuteTransform,
    Resize,
    TransformedEnv,
)
from torchrl.modules import MLP, AdditiveGaussianModule, ValueOperator
from torchrl.objectives import SoftUpdate, TD3Loss

from torchrl_vip import VIPTransform
from torchrl_vip.functional import random_shift

# -- config -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrQConfig(Config):
    observation: str = arg("pixels", "what the networks see", choices=("pixels", "embedding"))
    goals: int = arg(5, "goal images of other episodes, averaged; 0: each start's own solved state")
    # The paper's 84 pixels and strides 2, 1, 1, 1 cost some seven times as much: for a GPU.
    frame_size: int = arg(64, "side of the frames that the networks see, pixels")
    stack: int = arg(1, "last frames that the networks see")
    shift: int = arg(4, "random shifts of the frames are up to so many pixels")
    batch_size: int = arg(128, "transitions an update")
    updates_per_step: float = arg(0.5, "updates per environment step")
    n_steps: int = arg(3, "rewards summed before bootstrapping, actions")
    features: int = arg(50, "width of the bottleneck behind the convolutions")
    hidden: int = arg(256, "width of the networks' two layers")
    lr: float = arg(3e-4, "Adam's learning rate")
    gamma: float = arg(0.99, "discount an action")
    tau: float = arg(0.01, "step of the target networks towards the critics, an update")
    noise_steps: int = arg(20_000, "environment steps in which the noise fades from 1 to 0.1")
    buffer_size: int = arg(50_000, "transitions kept; 25 kB each from pixels")


SMOKE = {
    "steps": 36,
    "max_steps": 12,
    "warmup": 12,
    "batch_size": 4,
    "updates_per_step": 0.25,
    "eval_every": 24,
    "eval_episodes": 1,
    "final_episodes": 1,
    "checkpoint_every": 12,
    "goals": 1,
    "hidden": 16,
    "features": 8,
    "frame_size": 32,
    "buffer_size": 200,
}

SEEN = {"pixels": "image", "embedding": "z"}  # the networks read it, and proprioception "s"


# -- environment and encoder ------------------------------------------------------------------------


def make_env(seed: int, *, cfg: DrQConfig, goal=None, statistics=None, film=False) -> EnvBase:
    """pixels -> vip_vec -> vip_reward -> reward, z, s; and image, uint8 ``[3 * stack, S, S]``."""
    env = common.suite_env(cfg, seed, goal=None if goal else "solved")
    from_pixels = cfg.observation == "pixels"
    vip = VIPTransform(
        cfg.encoder, in_keys=cfg.frame_keys, blur=cfg.blur, del_keys=not (film or from_pixels)
    )
    env = TransformedEnv(env, vip)
    env.append_transform(common.vip_reward(cfg, statistics, goal))
    env.append_transform(TrainingReward(cfg.reward))
    if statistics is not None:
        common.scaled_inputs(env, statistics)
    if from_pixels:
        env.append_transform(PermuteTransform((-1, -3, -2), ["pixels"], ["image"]))
        env.append_transform(Resize(cfg.frame_size, cfg.frame_size, in_keys=["image"]))
        env.append_transform(CatFrames(cfg.stack, -3, in_keys=["image"]))
    return env


# -- networks ---------------------------------------------------------------------------------------


class Convolutions(nn.Module):
    """uint8 or float frames 0-255 ``[*B, C, S, S]`` to features ``[*B, F]``."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stride in (2, 2, 1, 1):
            layers += [nn.Conv2d(channels, 32, 3, stride), nn.ReLU()]
            channels, size = 32, (size - 3) // stride + 1
        self.layers, self.size = nn.Sequential(*layers), channels * size * size

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.reshape(-1, *frames.shape[-3:]).float() / 255 - 0.5
        return self.layers(x).reshape(*frames.shape[:-3], self.size)


class Head(nn.Module):
    """Features ``[*B, F]`` through a bottleneck, joined by other inputs, to outputs ``[*B, N]``."""

    def __init__(
        self,
        cfg: DrQConfig,
        features: int,
        others: int,
        outputs: int,
        last: type[nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        self.last = last()
        self.bottleneck = nn.Sequential(
            nn.Linear(features, cfg.features), nn.LayerNorm(cfg.features), nn.Tanh()
        )
        self.mlp = MLP(
            cfg.features + others,
            outputs,
            num_cells=[cfg.hidden, cfg.hidden],
            activation_class=nn.ReLU,
        )

    def forward(self, features: Tensor, *others: Tensor) -> Tensor:
        return self.last(self.mlp(torch.cat([self.bottleneck(features), *others], -1)))


def main() -> None:
    cfg = common.parse(DrQConfig, __doc__, SMOKE)
    if cfg.observation == "pixels" and len(cfg.frame_keys) > 1:
        sys.exit(f"error: --camera {cfg.camera} wants --observation embedding: pixels are of one")
    with Run(cfg) as run:
        train(cfg, run)


def train(cfg: DrQConfig, run: Run) -> None:
    goal = common.goal_images(cfg, cfg.goals) or None
    make = partial(make_env, cfg=cfg, goal=goal)
    statistics = run.statistics
    if statistics is None:
        statistics = common.input_statistics(make, cfg)
    make = partial(make, statistics=statistics)
    eval_env = make(common.EVALUATION_SEED, film=True)
    actions, seen = eval_env.action_spec, SEEN[cfg.observation]
    shape = {key: eval_env.observation_spec[key].shape for key in (seen, "s")}

    # -- replay buffer ------------------------------------------------------------------------------
    stored = [seen, "s", "action"]
    stored += [("next", key) for key in (seen, "s", "reward", "done", "terminated")]
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(cfg.buffer_size),
        transform=MultiStepTransform(cfg.n_steps, cfg.gamma),
        batch_size=cfg.batch_size,
    )

    # -- networks -----------------------------------------------------------------------------------
    convolutions = nn.Identity()
    if cfg.observation == "pixels":
        convolutions = Convolutions(shape[seen][-3], cfg.frame_size)
    features = TensorDictModule(convolutions, in_keys=[seen], out_keys=["features"])
    size = getattr(convolutions, "size", shape[seen][-1])
    actor = TensorDictModule(
        Head(cfg, size, shape["s"][-1], actions.shape[-1], last=nn.Tanh),
        in_keys=["features", "s"],
        out_keys=["action"],
    )
    critic = ValueOperator(
        Head(cfg, size, shape["s"][-1] + actions.shape[-1], 1), in_keys=["features", "s", "action"]
    )
    noise = AdditiveGaussianModule(actions, 1.0, 0.1, annealing_num_steps=cfg.noise_steps)
    policy = TensorDictSequential(features, actor)

    # -- loss ---------------------------------------------------------------------------------------
    loss = TD3Loss(
        actor,
        critic,
        action_spec=actions,
        num_qvalue_nets=2,
        policy_noise=0.2,
        noise_clip=0.3,
        delay_actor=False,
        loss_function="l2",
    )
    loss.make_value_estimator(gamma=cfg.gamma)
    targets = SoftUpdate(loss, tau=cfg.tau)
    optimizer = torch.optim.Adam(
        [*features.parameters(), *loss.parameters()], lr=cfg.lr, fused=True
    )
    parts = {"features": features, "loss": loss, "noise": noise}
    parts |= {"optimizer": optimizer, "buffer": buffer}
    run.load(**parts)

    def update() -> dict[str, Tensor]:
        batch: TensorDictBase = buffer.sample()
        if cfg.observation == "pixels":
            for part in (batch, batch["next"]):
                part["image"] = random_shift(part["image"], cfg.shift)
        features(batch)
        with torch.no_grad():
            features(batch["next"])
        loss_critic, _ = loss.value_loss(batch)
        # Only the critics train the convolutions.
        loss_actor, _ = loss.actor_loss(batch.detach())
        optimizer.zero_grad()
        (loss_critic + loss_actor).backward()
        optimizer.step()
        targets.step()
        return {"loss_qvalue": loss_critic.detach(), "loss_actor": loss_actor.detach()}

    # -- loop ---------------------------------------------------------------------------------------
    collector = workers.make_collector(cfg, make, TensorDictSequential(policy, noise), run.step)
    for batch in workers.batches(collector, cfg, run.step):
        buffer.extend(batch.select(*stored))
        steps = run.advance(len(batch))
        noise.step(steps)
        losses = {}
        if run.step >= cfg.warmup:
            for _ in range(int(cfg.updates_per_step * steps)):
                losses = update()
            collector.update_policy_weights_()
        run.log_training(batch, losses)
        if run.due(cfg.eval_every):
            run.evaluate(eval_env, policy)
        if run.due(cfg.checkpoint_every):
            run.save(statistics=statistics, **parts)
    collector.shutdown()


if __name__ == "__main__":
    main()
