"""SAC learns to press a button from one camera and a goal image: the example to copy and change.

    python examples/sac_minimal.py --out run                    # reward: nearness to the goal image
    python examples/sac_minimal.py --out other --reward sparse  # reward: 1 where the task is solved

The goal image is each start's own solved state, drawn by a script: a simulator's privilege. With an image
of your own: VIPRewardTransform("goal.png"), and make_env without goal. Writes success.csv and policy.pt.
"""

import argparse
from itertools import chain
from pathlib import Path

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import NormalParamExtractor, ProbabilisticActor, TanhNormal
from torchrl.objectives import SACLoss, SoftUpdate
from tqdm import tqdm

from torchrl_vip import VIPRewardTransform, VIPTransform
from torchrl_vip.envs.metaworld import make_env

EPISODE, HOLD, EVALUATE = 100, 4, 5_000  # simulator steps of an episode, an action, between tests
UNSEEN = 2**40  # and following: seeds of the evaluation's starts, which no training draws
INPUTS = ["vip_vec", "goal_embedding", "state"]
STORED = [*INPUTS, "action", *(("next", k) for k in (*INPUTS, "reward", "done", "terminated"))]

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--task", default="button-press-v3", help="of Meta-World (%(default)s)")
parser.add_argument("--camera", default="behindGripper", help="the only one (%(default)s)")
parser.add_argument("--reward", default="vip", choices=("vip", "sparse"), help="to learn from")
parser.add_argument("--steps", type=int, default=20_000, help="simulator steps (%(default)s)")
parser.add_argument("--seed", type=int, default=0, help="of starts, networks and actions")
parser.add_argument("--out", type=Path, default="sac_minimal", help="folder (%(default)s)")
parser.add_argument("--smoke", action="store_true", help="a run of seconds")
args = parser.parse_args()
steps, warmup, test_episodes = (400, 200, 2) if args.smoke else (args.steps, 1_000, 50)
if steps <= warmup:
    parser.error(f"--steps {steps} is invalid: wanted more than the {warmup} of random actions.")
torch.manual_seed(args.seed)
args.out.mkdir(parents=True, exist_ok=True)


def make(seed: int) -> EnvBase:
    """Frames to "vip_vec"; the reward is how much nearer that came to the goal's embedding."""
    options = {"cameras": args.camera, "max_steps": EPISODE, "frame_skip": HOLD}
    env = TransformedEnv(make_env(args.task, goal="solved", seed=seed, **options), VIPTransform())
    return env.append_transform(VIPRewardTransform(scale="auto"))  # a success returns 1 to 2


class Network(nn.Module):
    """MLP of goal minus embedding, the norm of that, proprioception, and for a critic the action."""

    def __init__(self, z: Tensor, state: Tensor, actions: int, out: int, *head: nn.Module):
        super().__init__()
        # the many numbers of an embedding weigh as much together as the few of the state
        self.register_buffer("z_scale", z.std(0).norm() / state.shape[-1] ** 0.5)
        self.register_buffer("state_loc", state.mean(0))
        self.register_buffer("state_scale", state.std(0).clamp_min(1e-2))
        inputs = z.shape[-1] + 1 + state.shape[-1] + actions
        first = nn.Linear(inputs, 256), nn.LayerNorm(256), nn.ReLU()
        second = nn.Linear(256, 256), nn.LayerNorm(256), nn.ReLU()
        self.layers = nn.Sequential(*first, *second, nn.Linear(256, out), *head)

    def forward(self, z: Tensor, z_goal: Tensor, state: Tensor, *action: Tensor) -> Tensor:
        left = (z_goal - z) / self.z_scale
        state = (state - self.state_loc) / self.state_scale
        return self.layers(torch.cat([left, left.norm(dim=-1, keepdim=True), state, *action], -1))


@torch.no_grad()
@set_exploration_type(ExplorationType.DETERMINISTIC)
def evaluate(env: EnvBase, policy: nn.Module) -> float:
    """Share of unseen starts, the same at every call, that the policy leaves solved."""
    solved = 0
    for i in range(test_episodes):
        env.set_seed(UNSEEN + i)
        solved += env.rollout(EPISODE, policy)["next", "success"][-1].item()
    return solved / test_episodes


env, test_env = make(args.seed), make(UNSEEN)
seen = env.rollout(warmup // HOLD, break_when_any_done=False)  # random actions
spec, size, keys = env.action_spec, env.action_spec.shape[-1], ["loc", "scale"]
z, state = seen["vip_vec"], seen["state"]
actor = TensorDictModule(Network(z, state, 0, 2 * size, NormalParamExtractor()), INPUTS, keys)
actor = ProbabilisticActor(actor, keys, spec=spec, distribution_class=TanhNormal)
critic = TensorDictModule(Network(z, state, size, 1), [*INPUTS, "action"], ["state_action_value"])
loss = SACLoss(actor, critic, num_qvalue_nets=2, alpha_init=0.05, action_spec=spec)
loss.make_value_estimator(gamma=0.95)  # short: every reward is progress already
targets = SoftUpdate(loss, tau=0.01)
weights = [p for p in loss.parameters() if p is not loss.log_alpha]
optimizer = torch.optim.Adam([{"params": weights}, {"params": [loss.log_alpha], "lr": 3e-3}], 1e-3)
anneal = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps // EPISODE)
buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(steps // HOLD), batch_size=256)
sizes = {"frames_per_batch": EPISODE // HOLD, "total_frames": (steps - warmup) // HOLD}

bar, curve = tqdm(total=steps, unit="step"), "step,success\n"
for batch in chain([seen], Collector(env, actor, **sizes, auto_register_policy_transforms=False)):
    reward = 10 * batch["next", "reward"] if args.reward == "vip" else batch["next", "success"]
    buffer.extend(batch.select(*STORED).set(("next", "reward"), reward.float()))
    for _ in range(2 * len(batch)):
        losses = loss(buffer.sample())
        optimizer.zero_grad()
        (losses["loss_actor"] + losses["loss_qvalue"] + losses["loss_alpha"]).backward()
        optimizer.step()
        targets.step()
    anneal.step()
    bar.update(len(batch) * HOLD)
    bar.set_postfix(reward=reward.sum().item(), success=batch["next", "success"][-1].item())
    if bar.n % EVALUATE == 0 or bar.n >= steps:
        curve += f"{bar.n},{evaluate(test_env, actor)}\n"
        (args.out / "success.csv").write_text(curve)
        torch.save(actor.state_dict(), args.out / "policy.pt")
print(f"{curve}{test_episodes} unseen starts each")
