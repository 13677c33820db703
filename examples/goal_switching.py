"""SAC for a goal that changes at every reset, with hindsight goals in the replay buffer.

    python examples/goal_switching.py --out run
    python examples/goal_switching.py --out run --resume
    python examples/goal_switching.py --out two --processes 2
    python examples/goal_switching.py --out many --processes 16 --collector ray  # on a Ray cluster

Every episode shows the solved state of its own start; the policy sees the goal's embedding beside
the frame's. Four of five sampled transitions get another goal, a frame that the same episode
reached later, and the reward that it would have brought: Andrychowicz et al., arXiv 1707.01495.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import common
import torch
import workers
from common import REWARD_SCALES, Config, TrainingReward, arg
from runs import Run
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import HERReplayBuffer, LazyTensorStorage
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from torchrl_vip import VIPTransform, goal_reward

# -- config -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoalConfig(Config):
    her_ratio: float = arg(0.8, "fraction of a batch that gets a hindsight goal")
    hidden: int = arg(256, "width of the networks' two layers")
    lr: float = arg(1e-3, "Adam's learning rate at the start; falls in a line to a tenth")
    alpha: float = arg(0.05, "weight of the entropy at the start; tuned to an entropy of -actions")
    alpha_lr: float = arg(3e-3, "Adam's learning rate of the logarithm of that weight")
    gamma: float = arg(0.95, "discount an action; each reward is a step of the way already")
    tau: float = arg(0.01, "step of the target networks towards the critics, an update")
    action_cost: float = arg(
        0.0, "taken off the reward for an action of full size, so that a policy rests at its goal"
    )
    buffer_size: int = arg(100_000, "transitions kept, 8 kB each and camera")


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
    "hidden": 16,
    "buffer_size": 200,
}

OBSERVATION = ["z", "s", "z_goal"]  # scaled embedding [*B, D], proprioception [*B, S], goal [*B, D]
STORED = [
    *OBSERVATION,
    "action",
    *[("next", key) for key in (*OBSERVATION, "reward", "done", "terminated")],
]


# -- environment and encoder ------------------------------------------------------------------------


def make_env(seed: int, *, cfg: GoalConfig, statistics=None, film=False) -> EnvBase:
    """pixels, goal_image -> vip_vec, goal_embedding -> vip_reward -> reward, z, s, z_goal."""
    env = common.suite_env(cfg, seed, goal="solved")
    vip = VIPTransform(cfg.encoder, in_keys=cfg.frame_keys, blur=cfg.blur, del_keys=not film)
    env = TransformedEnv(env, vip)
    env.append_transform(common.vip_reward(cfg, statistics))
    env.append_transform(TrainingReward(cfg.reward, cfg.action_cost))
    return env if statistics is None else common.scaled_inputs(env, statistics, "goal_embedding")


class GoalMLP(MLP):
    """An MLP that reads the difference to the goal in the space of the embedding, ``z_goal - z``, its
    length by each camera, and the rest as it is."""

    def __init__(self, *sizes: int, cameras: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.cameras = cameras

    def forward(self, z: Tensor, s: Tensor, z_goal: Tensor, *action: Tensor) -> Tensor:
        difference = z_goal - z
        length = difference.unflatten(-1, (self.cameras, -1)).norm(dim=-1)
        return super().forward(torch.cat([difference, s, length, *action], -1))


def hindsight_reward(
    batch: TensorDictBase,
    *,
    choice: str,
    unit: Tensor,
    calibration: dict,
    weights: Tensor,
    action_cost: float = 0.0,
) -> Tensor:
    """What TrainingReward gives, for the goals in ``batch``: ``[B, 1]``.

    Success is here a distance below the checkpoint's threshold. ``unit``: embedding units in one of
    "z", ``[D]``. ``weights``: of the cameras' distances, ``[K]``.
    """
    z, z_next, z_goal = (unit * batch[key] for key in ("z", ("next", "z"), "z_goal"))
    # of several cameras the distance is in parts of the first one, of about 1 / reward_scale
    part = calibration["reward_scale"] if len(weights) > 1 else 1.0
    options = {"weights": weights, "scale": calibration["reward_scale"] / part}
    if "sparse" in (names := choice.split("+")):
        options["threshold"] = calibration["success_threshold"] * part
    forms = {"vip": "difference", "sparse": "sparse"}
    reward = sum(
        REWARD_SCALES[name] * goal_reward(z, z_next, z_goal, form=forms[name], **options)
        for name in names
    )
    if action_cost:
        reward = reward - action_cost * batch["action"].square().mean(-1)
    return reward.unsqueeze(-1)


def main() -> None:
    cfg = common.parse(GoalConfig, __doc__, SMOKE)
    with Run(cfg) as run:
        train(cfg, run)


def train(cfg: GoalConfig, run: Run) -> None:
    make = partial(make_env, cfg=cfg)
    statistics = run.statistics
    if statistics is None:
        statistics = common.input_statistics(make, cfg)
    make = partial(make, statistics=statistics)
    eval_env = make(common.EVALUATION_SEED, film=True)
    actions = eval_env.action_spec
    cameras = len(cfg.frame_keys)
    size = sum(eval_env.observation_spec[key].shape[-1] for key in ("z", "s")) + cameras

    # -- replay buffer ------------------------------------------------------------------------------
    buffer = HERReplayBuffer(
        partial(
            hindsight_reward,
            choice=cfg.reward,
            unit=statistics["z_scale"],
            calibration=eval_env.transform[0].encoder.config,
            weights=statistics["camera_weights"],
            action_cost=cfg.action_cost,
        ),
        goal_key="z_goal",
        achieved_goal_key=("next", "z"),
        # the simulator's dense reward cannot be had for another goal
        her_ratio=0.0 if cfg.reward == "dense" else cfg.her_ratio,
        storage=LazyTensorStorage(cfg.buffer_size),
        batch_size=cfg.batch_size,
    )

    # -- networks -----------------------------------------------------------------------------------
    layers = {
        "cameras": cameras,
        "num_cells": [cfg.hidden, cfg.hidden],
        "activation_class": nn.ReLU,
        "norm_class": nn.LayerNorm,
        "norm_kwargs": {"normalized_shape": cfg.hidden},
    }
    actor = ProbabilisticActor(
        TensorDictSequential(
            TensorDictModule(
                GoalMLP(size, 2 * actions.shape[-1], **layers), OBSERVATION, ["parameters"]
            ),
            TensorDictModule(NormalParamExtractor(), ["parameters"], ["loc", "scale"]),
        ),
        spec=actions,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
    )
    critic = ValueOperator(
        GoalMLP(size + actions.shape[-1], 1, **layers),
        in_keys=[*OBSERVATION, "action"],
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
    targets = SoftUpdate(loss, tau=cfg.tau)
    networks = [p for p in loss.parameters() if p is not loss.log_alpha]
    # The weight that holds the entropy at its target is forty times below its start: rewards are
    # small, and until it is found the policy moves at random.
    optimizer = torch.optim.Adam(
        [{"params": networks}, {"params": [loss.log_alpha], "lr": cfg.alpha_lr}],
        lr=cfg.lr,
        fused=True,
    )
    parts = {"loss": loss, "optimizer": optimizer, "buffer": buffer}
    run.load(**parts)

    def update() -> TensorDictBase:
        losses = loss(buffer.sample())
        optimizer.zero_grad()
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
        optimizer.step()
        targets.step()
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
            run.evaluate(eval_env, actor)
        if run.due(cfg.checkpoint_every):
            run.save(statistics=statistics, **parts)
    collector.shutdown()


if __name__ == "__main__":
    main()
