"""SAC on frozen VIP embeddings and proprioception, rewarded by the distance to a goal image.

    python examples/sac.py --out run                 # about 20 steps a second on a CPU core
    python examples/sac.py --out run --resume
    python examples/sac.py --out two --processes 2                      # two workers collect
    python examples/sac.py --out many --processes 16 --collector ray    # on a Ray cluster

The replay buffer stores embeddings, never frames. Soft actor-critic: Haarnoja et al.,
arXiv 1812.05905, with layer normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import common
import torch
import workers
from common import Config, TrainingReward, arg
from runs import Run
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchrl.data import Composite, LazyTensorStorage, TensorDictReplayBuffer, Unbounded
from torchrl.envs import EnvBase, Transform, TransformedEnv
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_vip import VIPTransform

# -- config -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SACConfig(Config):
    goals: int = arg(0, "goal images of other episodes, averaged; 0: each start's own solved state")
    hidden: int = arg(256, "width of the networks' two layers")
    lr: float = arg(1e-3, "Adam's learning rate at the start; falls in a line to a tenth")
    alpha: float = arg(
        0.05,
        "weight of the entropy at the start; then tuned to an entropy of minus the action's size",
    )
    alpha_lr: float = arg(3e-3, "Adam's learning rate of the logarithm of that weight")
    gamma: float = arg(0.95, "discount an action; each reward is a step of the way already")
    tau: float = arg(0.01, "step of the target networks towards the critics, an update")
    action_cost: float = arg(
        0.0, "taken off the reward for an action of full size, so that a policy rests at its goal"
    )
    average: float = arg(
        0.999,
        "decay an update of the actor's moving average, which is evaluated; 0: the last actor",
    )
    buffer_size: int = arg(100_000, "transitions kept, 4 kB each and camera")
    compile: bool = arg(False, "the loss, by torch.compile: a minute at the start, then faster")


SMOKE = {
    "steps": 36,
    "max_steps": 12,
    "warmup": 12,
    "batch_size": 16,
    "updates_per_step": 0.5,
    "eval_every": 24,
    "eval_episodes": 1,
    "final_episodes": 1,
    "checkpoint_every": 12,
    "goals": 1,
    "hidden": 16,
    "buffer_size": 200,
}

STORED = [
    "observation",
    "action",
    *[("next", key) for key in ("observation", "reward", "done", "terminated")],
]


# -- environment and encoder ------------------------------------------------------------------------


def make_env(seed: int, *, cfg: SACConfig, goal=None, statistics=None, film=False) -> EnvBase:
    """pixels -> vip_vec -> vip_reward -> reward, observation. ``film`` keeps the frames."""
    env = common.suite_env(cfg, seed, goal=None if goal else "solved")
    vip = VIPTransform(cfg.encoder, in_keys=cfg.frame_keys, blur=cfg.blur, del_keys=not film)
    env = TransformedEnv(env, vip)
    env.append_transform(common.vip_reward(cfg, statistics, goal))
    env.append_transform(TrainingReward(cfg.reward, cfg.action_cost))
    if statistics is not None:
        common.scaled_inputs(env, statistics, "goal_embedding")
        env.append_transform(ToGoal(len(cfg.frame_keys)))
    return env


class ToGoal(Transform):
    """What the networks read, "observation" ``[*B, D + S + K]``: the difference to the goal in the space
    of the embedding, which a policy of changing goals has to know, proprioception, and the length of that
    difference by each of K cameras, as the reward is made of it and a network does not find a norm easily."""

    def __init__(self, cameras: int) -> None:
        super().__init__(in_keys=["z", "z_goal", "s"], out_keys=["observation"])
        self.cameras = cameras

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        z, z_goal, s = (next_tensordict[key] for key in self.in_keys)
        difference = z_goal - z
        length = difference.unflatten(-1, (self.cameras, -1)).norm(dim=-1)
        return next_tensordict.set("observation", torch.cat([difference, s, length], -1))

    def _reset(self, _: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return self._call(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        size = sum(observation_spec[key].shape[-1] for key in ("z", "s")) + self.cameras
        observation_spec["observation"] = Unbounded((*observation_spec.shape, size))
        return observation_spec


def main() -> None:
    cfg = common.parse(SACConfig, __doc__, SMOKE)
    with Run(cfg) as run:
        train(cfg, run)


def train(cfg: SACConfig, run: Run) -> None:
    goal = common.goal_images(cfg, cfg.goals) or None
    make = partial(make_env, cfg=cfg, goal=goal)
    statistics = run.statistics
    if statistics is None:
        statistics = common.input_statistics(make, cfg)
    make = partial(make, statistics=statistics)
    eval_env = make(common.EVALUATION_SEED, film=True)
    size, actions = eval_env.observation_spec["observation"].shape[-1], eval_env.action_spec

    # -- replay buffer ------------------------------------------------------------------------------
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(cfg.buffer_size), batch_size=cfg.batch_size
    )

    # -- networks -----------------------------------------------------------------------------------
    layers = {
        "num_cells": [cfg.hidden, cfg.hidden],
        "activation_class": nn.ReLU,
        "norm_class": nn.LayerNorm,
        "norm_kwargs": {"normalized_shape": cfg.hidden},
    }
    actor = ProbabilisticActor(
        TensorDictModule(
            nn.Sequential(MLP(size, 2 * actions.shape[-1], **layers), NormalParamExtractor()),
            in_keys=["observation"],
            out_keys=["loc", "scale"],
        ),
        spec=actions,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    critic = ValueOperator(
        MLP(size + actions.shape[-1], 1, **layers),
        in_keys=["observation", "action"],
    )

    # -- loss ---------------------------------------------------------------------------------------
    loss = SACLoss(
        actor,
        critic,
        num_qvalue_nets=2,
        alpha_init=cfg.alpha,
        action_spec=actions,
        target_entropy="auto",
    )
    loss.make_value_estimator(gamma=cfg.gamma)
    # What is evaluated: the last policies of a run differ in success by a tenth or two.
    average = AveragedModel(actor, multi_avg_fn=get_ema_multi_avg_fn(cfg.average))
    targets = SoftUpdate(loss, tau=cfg.tau)
    networks = [p for p in loss.parameters() if p is not loss.log_alpha]
    # The weight that holds the entropy at its target is forty times below its start: rewards are
    # small, and until it is found the policy moves at random.
    optimizer = torch.optim.Adam(
        [{"params": networks}, {"params": [loss.log_alpha], "lr": cfg.alpha_lr}],
        lr=cfg.lr,
        fused=True,
    )
    parts = {"loss": loss, "average": average, "optimizer": optimizer, "buffer": buffer}
    run.load(**parts)
    losses_of = torch.compile(loss) if cfg.compile else loss

    def update() -> TensorDictBase:
        losses = losses_of(buffer.sample())
        optimizer.zero_grad()
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
        optimizer.step()
        targets.step()
        average.update_parameters(actor)
        return losses.detach()

    # -- loop ---------------------------------------------------------------------------------------
    collector = workers.make_collector(cfg, make, actor, run.step)
    for batch in workers.batches(collector, cfg, run.step):
        buffer.extend(batch.select(*STORED))
        steps = run.advance(len(batch))
        losses = {}
        # falls, as the policy that counts is the last one
        optimizer.param_groups[0]["lr"] = cfg.lr * max(1 - run.step / cfg.steps, 0.1)
        if run.step >= cfg.warmup:
            for _ in range(int(cfg.updates_per_step * steps)):
                losses = update()
            collector.update_policy_weights_()
        run.log_training(batch, losses)
        if run.due(cfg.eval_every):
            run.evaluate(eval_env, average.module)
        if run.due(cfg.checkpoint_every):
            run.save(statistics=statistics, **parts)
    collector.shutdown()


if __name__ == "__main__":
    main()
