"""Offline learning: weights and loss by hand, what is read and refused, going on to the same bits."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives import BCLoss

from torchrl_vip import FrozenEncoder, load_vip
from torchrl_vip.functional import (
    effective_sample_size,
    log_reward_weights,
    normalised_weights,
    random_shift,
)
from torchrl_vip.offline import (
    METHODS,
    Learner,
    RWRLoss,
    Settings,
    load_policy,
    read_steps,
    reward_to_come,
    save_policy,
    shifted_views,
)
from torchrl_vip.offline.corrections import Corrections
from torchrl_vip.offline.rollouts import roll_out

EXAMPLE = Path(__file__).parents[1] / "examples" / "offline_rl.py"


def make_steps(count: int = 40, episodes: int = 4) -> TensorDict:
    """Steps of random numbers, with the keys of read_steps."""
    random = torch.Generator().manual_seed(0)
    z = torch.randn(count, 6, generator=random)
    state = torch.randn(count, 3, generator=random)
    action = torch.rand(count, 2, generator=random) * 2 - 1
    done = torch.zeros(count, 1, dtype=torch.bool)
    done[count // episodes - 1 :: count // episodes] = True
    following = {"vip_vec": z.roll(-1, 0), "state": state.roll(-1, 0), "done": done}
    following |= {"terminated": torch.zeros_like(done), "reward": z[:, :1].clone()}
    episode = torch.arange(count) // (count // episodes)
    steps = {"vip_vec": z, "state": state, "action": action, "episode": episode}
    return TensorDict({**steps, "next": following}, [count])


# --- weights ----------------------------------------------------------------------------------------


def test_weights_are_exp_tau_r_with_mean_one() -> None:
    weights = normalised_weights(log_reward_weights(torch.tensor([0.0, math.log(3.0)]), tau=1.0))
    assert torch.allclose(weights, torch.tensor([0.5, 1.5]))
    assert effective_sample_size(weights).item() == pytest.approx(4 / 2.5)


def test_a_temperature_takes_the_scale_of_the_reward_out() -> None:
    reward = torch.tensor([-1.0, 1.0])  # its deviation is 1
    log_weights = log_reward_weights(reward, temperature=0.5)
    assert torch.allclose(log_weights, torch.tensor([-2.0, 2.0]))
    assert torch.allclose(log_reward_weights(100 * reward, temperature=0.5), log_weights)


def test_clipped_weights_have_mean_one_too() -> None:
    weights = normalised_weights(torch.tensor([10.0, 0.0, 0.0, 0.0]), clip=2.0)
    assert weights.mean().item() == pytest.approx(1.0)
    assert weights[0] / weights[1] < math.e**10


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=30), st.floats(0, 5))
def test_the_effective_sample_size_lies_between_one_and_all(rewards, tau) -> None:
    weights = normalised_weights(log_reward_weights(torch.tensor(rewards), tau=tau))
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-4)
    assert 1 - 1e-4 <= effective_sample_size(weights).item() <= len(rewards) + 1e-3


@pytest.mark.parametrize(
    "options, says",
    [
        ({}, "wanted exactly one"),
        ({"tau": 1.0, "temperature": 1.0}, "wanted exactly one"),
        ({"temperature": 0.0}, "temperature=0.0 is invalid"),
    ],
)
def test_weights_that_cannot_be_are_refused(options, says) -> None:
    with pytest.raises(ValueError, match=says):
        log_reward_weights(torch.tensor([0.0, 1.0]), **options)


def test_rewards_that_are_all_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="all 3 rewards are 0.2"):
        log_reward_weights(torch.full((3,), 0.2), temperature=1.0)
    with pytest.raises(ValueError, match="clip=0.5 is invalid"):
        normalised_weights(torch.zeros(2), clip=0.5)


# --- the loss ---------------------------------------------------------------------------------------


def zero_actor() -> TensorDictModule:
    """Always chooses 0."""
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return TensorDictModule(layer, ["observation"], ["action"])


def batch(reward: list[float], action: list[float]) -> TensorDict:
    columns = {"observation": torch.ones(2, 1), "action": torch.tensor(action)[:, None]}
    return TensorDict({**columns, "next": {"reward": torch.tensor(reward)[:, None]}}, [2])


def test_the_loss_is_the_weighted_squared_error() -> None:
    loss = RWRLoss(zero_actor(), tau=1.0, loss_function="l2")
    out = loss(batch([0.0, math.log(3.0)], [1.0, 2.0]))
    assert out["loss_rwr"].item() == pytest.approx((0.5 * 1 + 1.5 * 4) / 2)
    assert out["effective_sample_size"].item() == pytest.approx(4 / 2.5 / 2)
    assert out["largest_weight"].item() == pytest.approx(1.5)


def test_after_fit_a_batch_has_the_weights_of_the_dataset() -> None:
    loss = RWRLoss(zero_actor(), tau=1.0, loss_function="l2")
    weights = loss.fit(torch.tensor([[0.0], [math.log(3.0)], [math.log(5.0)]]))
    assert torch.allclose(weights, torch.tensor([1.0, 3.0, 5.0]) / 3)
    assert loss(batch([0.0, 0.0], [1.0, 2.0]))["loss_rwr"].item() == pytest.approx(2.5 / 3)


def test_without_weight_it_is_behaviour_cloning() -> None:
    actor, data = zero_actor(), batch([0.0, 9.0], [1.0, 2.0])
    rwr = RWRLoss(actor, tau=0.0, loss_function="l2")(data)["loss_rwr"]
    assert rwr.item() == BCLoss(actor, loss_function="l2")(data)["loss_bc"].item()


def test_gradients_go_to_the_policy_and_not_to_the_rewards() -> None:
    loss, data = (
        RWRLoss(zero_actor(), temperature=1.0, loss_function="l2"),
        batch([0.0, 1.0], [1.0, 2.0]),
    )
    loss(data)["loss_rwr"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_a_stochastic_policy_has_weighted_log_likelihoods() -> None:
    steps = make_steps()
    learner = Learner(steps, Settings("iql", steps=1, noise=0.0))
    loss = RWRLoss(learner.actor, tau=0.0)(steps)["loss_rwr"]
    likelihood = learner.actor.get_dist(steps).log_prob(steps["action"])
    assert loss.item() == pytest.approx(-likelihood.mean().item(), rel=1e-5)


def test_of_two_habits_it_takes_the_rewarded_one() -> None:
    steps = make_steps()
    good = torch.arange(40)[:, None] % 2 == 0
    steps["action"] = torch.where(good, 0.8, -0.8).expand(-1, 2).clone()
    steps["vip_vec"], steps["state"] = torch.ones(40, 6), torch.ones(40, 3)
    steps["next", "reward"] = good.float()
    chosen = {}
    for method in ("bc", "rwr"):
        learner = Learner(steps.clone(), Settings(method, temperature=0.2, horizon=1, steps=300))
        for _ in learner.learn():
            pass
        chosen[method] = learner.actor(steps[:1].clone())["action"].mean().item()
    assert abs(chosen["bc"]) < 0.3 and chosen["rwr"] > 0.7


# --- what is read -----------------------------------------------------------------------------------


def test_the_reward_to_come_ends_with_the_episode() -> None:
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])[:, None]
    episode = torch.tensor([0, 0, 0, 1, 1])
    sums = {
        1: [1.0, 2.0, 4.0, 8.0, 16.0],
        2: [3.0, 6.0, 4.0, 24.0, 16.0],
        None: [7.0, 6.0, 4.0, 24.0, 16.0],
        "episode": [7.0, 7.0, 7.0, 24.0, 24.0],
    }
    for horizon, wanted in sums.items():
        assert reward_to_come(reward, episode, horizon)[:, 0].tolist() == wanted
    for horizon in (0, "all"):
        with pytest.raises(ValueError, match=f"horizon={horizon!r} is invalid"):
            reward_to_come(reward, episode, horizon)


def write_labelled(folder: Path, lengths=(5, 4), **changed) -> Path:
    """A LeRobot dataset as the labelling command writes it, of numbers that say where they are."""
    pytest.importorskip("pyarrow")
    pytest.importorskip("av")
    from torchrl_vip.data.lerobot.writer import LeRobotWriter

    with LeRobotWriter(folder, fps=10) as writer:
        for number, length in enumerate(lengths):
            at = np.arange(length, dtype=np.float32) + 10 * number
            columns = {
                "action": np.stack([at, -at], 1),
                "observation.state": np.stack([at, at, at], 1),
                "observation.vip": np.stack([at] * 4, 1),
                "next.reward": at / 100,
            }
            for name, change in changed.items():
                columns = change(columns) if name == "change" else columns
            stripes = np.arange(0, 256, 16, dtype=np.uint8)[:, None, None]
            frames = np.tile(stripes, (length, 1, 16, 3))
            writer.add_episode({"observation.images.top": frames}, columns, "push")
    return folder


def test_steps_of_a_labelled_dataset_stay_within_their_episodes(tmp_path) -> None:
    steps = read_steps(write_labelled(tmp_path / "set"))
    assert steps["state"][:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12]
    assert steps["next", "state"][:, 0].tolist() == [1, 2, 3, 4, 11, 12, 13]
    assert torch.allclose(steps["next", "reward"][:, 0], steps["state"][:, 0] / 100)
    assert torch.equal(steps["vip_vec"], steps["state"][:, :1].expand(-1, 4))
    assert steps["next", "done"][:, 0].nonzero()[:, 0].tolist() == [3, 6]
    assert steps["episode"].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_steps_with_a_nan_are_left_out(tmp_path) -> None:
    def hole(columns):
        columns["observation.vip"][1] = np.nan
        return columns

    steps = read_steps(write_labelled(tmp_path / "set", change=hole))
    assert steps["state"][:, 0].tolist() == [2, 3, 12]


def without(name):
    return lambda columns: {key: value for key, value in columns.items() if key != name}


def test_what_is_missing_is_named_with_what_to_do(tmp_path) -> None:
    bare = write_labelled(tmp_path / "bare", change=without("observation.vip"))
    with pytest.raises(ValueError, match=r"no column observation.vip.*torchrl_vip.label"):
        read_steps(bare)
    blind = write_labelled(tmp_path / "blind", change=without("observation.state"))
    with pytest.raises(ValueError, match=r"no column observation.state.*--no-state"):
        read_steps(blind)
    assert "state" not in read_steps(blind, state=False).keys()
    named = read_steps(blind, columns={"state": "action"})
    assert named["state"].shape == (7, 2)


def test_too_few_episodes_and_rewards_all_alike_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="1 episode with labels"):
        read_steps(write_labelled(tmp_path / "one", lengths=(5,)))

    def alike(columns):
        return {**columns, "next.reward": np.full(len(columns["action"]), 0.5, np.float32)}

    with pytest.raises(ValueError, match="all 7 rewards are 0.5"):
        read_steps(write_labelled(tmp_path / "alike", change=alike))
    with pytest.raises(ValueError, match="is no folder"):
        read_steps(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither a LeRobot dataset"):
        read_steps(tmp_path)


def test_a_memory_mapped_tensordict_is_read_too(tmp_path) -> None:
    steps = make_steps().exclude(("next", "done"), ("next", "terminated"))
    steps.memmap(tmp_path / "steps")
    read = read_steps(tmp_path / "steps")
    for key in ("vip_vec", "action", "episode", ("next", "reward"), ("next", "state")):
        assert torch.equal(read[key], steps[key])
    assert read["next", "done"][:, 0].nonzero()[:, 0].tolist() == [9, 19, 29, 39]
    steps.exclude("vip_vec").memmap(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"no \['vip_vec'\].*torchrl_vip.label"):
        read_steps(tmp_path / "bare")


def test_a_lerobot_episode_is_a_success_where_its_last_row_says_so(tmp_path) -> None:
    from torchrl_vip.data.sources import find_clips

    def outcome(columns):
        good = columns["action"][0, 0] == 0  # the first episode
        return {
            **columns,
            "next.success": np.array([False] * (len(columns["action"]) - 1) + [good]),
        }

    clips = find_clips(write_labelled(tmp_path / "set", change=outcome))
    assert [clip.success for clip in clips] == [True, False]


# --- learning ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path, method) -> None:
    steps, settings = make_steps(), Settings(method, steps=6, batch_size=8)
    whole = Learner(steps, settings)
    assert "reward_to_come" not in steps.keys()
    for _ in whole.learn():
        if whole.step == 3:
            whole.save(tmp_path / "checkpoint.pt")
    again = Learner(steps.clone(), replace(settings, steps=6))
    again.restore(tmp_path / "checkpoint.pt")
    assert again.step == 3
    assert len(list(again.learn())) == 3
    for name, value in whole.loss.state_dict().items():
        assert torch.equal(value, again.loss.state_dict()[name]), name
    assert not torch.equal(whole.actor(steps.clone())["action"], steps["action"])


def make_displacements(count: int = 400) -> TensorDict:
    """A hand [2] that actions 0 and 1 move by a tenth, and a gripper that action 2 opens and closes."""
    random = torch.Generator().manual_seed(0)
    action = torch.rand(count, 3, generator=random) - 0.5
    action[:, 2] = (torch.arange(count) // 20 % 2) * 2.0 - 1  # told the same for twenty steps
    state = torch.randn(count + 1, 3, generator=random)
    state[0, 2] = -1
    for t in range(count):
        state[t + 1, 2] = state[t, 2] + 0.5 * (action[t, 2] - state[t, 2])
    steps = TensorDict({"action": action, "state": state[:-1].clone()}, [count])
    then = state[1:].clone()
    then[:, :2] = steps["state"][:, :2] + 0.1 * action[:, :2]
    z, following = steps["state"] @ torch.ones(3, 5), then @ torch.ones(3, 5)
    steps["vip_vec"], steps["next"] = z, TensorDict({"state": then, "vip_vec": following}, [count])
    steps["episode"] = torch.arange(count) // 200
    return steps


def test_a_correction_takes_the_hand_back_to_where_it_would_have_been() -> None:
    steps = make_displacements()
    corrections = Corrections(steps, 0.1)
    assert corrections and corrections.displacements.tolist() == [True, True, False]
    wanted = torch.tensor([[0.1, 0.0], [0.0, 0.1], [0.0, 0.0]])
    assert torch.allclose(corrections.response["state"][:, :2], wanted, atol=1e-5)
    batch = steps.clone()
    batch["corrected"] = corrections.corrected
    corrections.apply(batch)
    moved = batch["state"] - steps["state"]
    seen = batch["vip_vec"] - steps["vip_vec"]
    assert torch.allclose(seen, moved @ torch.ones(3, 5), atol=1e-4)  # it is seen to be off
    assert 0.004 < moved[:, :2].std() < 0.006  # a tenth of half an action, which moves a tenth
    low, high = steps["action"].amin(0), steps["action"].amax(0)
    inside = ((batch["action"] > low) & (batch["action"] < high))[:, :2].all(1)
    then = batch["state"][:, :2] + 0.1 * batch["action"][:, :2]
    assert inside.sum() > 300
    # while the gripper begins to open or close nothing is moved; step 200 begins an episode
    alone = [t for t in range(400) if t % 20 < 3 and t > 2 and not 200 <= t < 203]
    assert (moved.abs().sum(1) == 0).nonzero()[:, 0].tolist() == alone
    assert torch.allclose(then[inside], steps["next", "state"][inside, :2], atol=1e-4)
    assert torch.equal(batch["action"][:, 2], steps["action"][:, 2])
    assert (batch["action"] <= steps["action"].amax(0)).all()


def test_a_gripper_is_no_displacement_and_without_state_nothing_is_corrected() -> None:
    steps = make_displacements()
    assert Corrections(steps, 0.3).displacements.tolist() == [True, True, False]
    assert not Corrections(steps, 0.0)
    assert not Corrections(steps.exclude("state", ("next", "state")), 0.3)
    still = steps.clone()
    still["next", "state"] = still["state"].clone()  # it never moves
    assert not Corrections(still, 0.3)


def test_an_action_that_sets_a_number_is_no_displacement_however_much_that_changes() -> None:
    steps = make_displacements()
    steps["action"][:, 2] = torch.arange(400) % 2 * 2.0 - 1  # told otherwise at every step
    steps["state"][:, 2], steps["next", "state"][:, 2] = (
        -steps["action"][:, 2],
        steps["action"][:, 2],
    )
    assert Corrections(steps, 0.3).displacements.tolist() == [True, True, False]


def test_a_step_is_seen_as_it_is_or_by_one_of_its_shifted_views() -> None:
    steps = make_steps()
    steps["vip_views"] = torch.stack([steps["vip_vec"] + 10, steps["vip_vec"] + 20], 1)
    learner = Learner(steps, Settings("bc", batch_size=400))
    batch = learner._sample()
    assert "vip_views" not in batch.keys() and batch["vip_vec"].shape == (400, 6)
    by = (batch["vip_vec"][:, 0].round() / 10).round().clamp(0, 2)
    shares = [(by == n).float().mean().item() for n in range(3)]
    assert min(shares) > 0.2
    assert batch["state"].isfinite().all()


def test_the_policy_is_the_mean_over_updates() -> None:
    learner = Learner(make_steps(), Settings("bc", steps=3, average=0.5))
    seen = []
    for _ in learner.learn():
        seen.append(learner._actor.state_dict()["module.0.module.mlp.0.bias"].clone())
    # decays .1 after a copy of the first: min(.5, 2 / 11), min(.5, 3 / 12)
    mean = seen[0]
    for count, now in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + count) / (10 + count))
        mean = decay * mean + (1 - decay) * now
    found = learner.actor.state_dict()["module.0.module.mlp.0.bias"]
    assert torch.allclose(found, mean, atol=1e-7) and not torch.allclose(found, seen[-1])


def test_shifted_views_are_of_the_frames_and_are_kept(tmp_path) -> None:
    frames = torch.arange(28 * 28).reshape(1, 1, 28, 28).expand(64, 3, -1, -1).to(torch.int32)
    frames = (frames % 251).to(torch.uint8)
    moved = random_shift(frames, 2, torch.Generator().manual_seed(0))
    assert moved.shape == frames.shape and moved.dtype == torch.uint8
    wide = torch.nn.functional.pad(frames[:1].float(), [2] * 4, mode="replicate").byte()[0]
    crops = [wide[:, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
    which = [[n for n, crop in enumerate(crops) if torch.equal(crop, one)] for one in moved]
    assert all(which) and len({n for ns in which for n in ns}) > 15

    folder = write_labelled(tmp_path / "set")
    options = {"encoder": "tiny", "views": 2, "show": False}
    views = shifted_views(folder, tmp_path / "store", **options)
    assert views.shape[:2] == (9, 2) and views.isfinite().all()
    (file, _) = sorted((tmp_path / "store").rglob("*.safetensors"))
    file.unlink()  # as after a kill
    assert torch.equal(shifted_views(folder, tmp_path / "store", **options), views)
    plain = shifted_views(folder, tmp_path / "store", colour=0.0, **options)
    assert torch.equal(plain[:, 0], views[:, 0])  # every second one has other colours
    assert ((plain[:, 1] - views[:, 1]).norm(dim=1) > 1e-3).all()
    with pytest.raises(ValueError, match="colour=2 is invalid: wanted 0 to 1"):
        shifted_views(folder, tmp_path / "store", colour=2, **options)
    with pytest.raises(ValueError, match="another encoder made these: give --encoder"):
        read_steps(folder, views=views)


def test_views_of_a_memory_mapped_tensordict_lie_at_its_steps(tmp_path) -> None:
    steps = make_steps().exclude(("next", "done"), ("next", "terminated"))
    steps["pixels"] = torch.arange(40, dtype=torch.uint8)[:, None, None, None].repeat(1, 32, 32, 3)
    steps["next", "pixels"] = steps["pixels"].roll(-1, 0)
    steps["next", "done"] = steps["episode"][:, None] != steps["episode"].roll(-1)[:, None]
    steps.memmap(tmp_path / "steps")
    options = {"encoder": "tiny", "views": 2, "show": False}
    views = shifted_views(tmp_path / "steps", tmp_path / "store", **options)
    assert views.shape[:2] == (40, 2) and views.isfinite().all()
    whole = FrozenEncoder(load_vip("tiny"))(
        steps["pixels"]
    )  # a frame of one colour is the same shifted
    assert torch.allclose(views[:, 0], whole, atol=1e-3)


def test_views_are_of_the_steps_frames(tmp_path) -> None:
    folder = write_labelled(tmp_path / "set")
    at = torch.tensor([0.0, 1, 2, 3, 4, 10, 11, 12, 13])
    views = (at[:, None] + torch.tensor([0.1, 0.2]))[..., None].repeat(1, 1, 4)
    steps = read_steps(folder, views=views)
    assert torch.equal(steps["vip_views"], views[[0, 1, 2, 3, 5, 6, 7]])
    with pytest.raises(ValueError, match="9 rows, and 8 rows of views"):
        read_steps(folder, views=views[1:])
    with pytest.raises(ValueError, match="give --encoder"):
        read_steps(folder, views=views + 20)


def test_a_checkpoint_of_other_settings_or_damaged_is_refused(tmp_path) -> None:
    learner, file = Learner(make_steps(), Settings("bc", steps=2)), tmp_path / "checkpoint.pt"
    learner.save(file)
    with pytest.raises(ValueError, match="begun with lr=0.001, now 0.1"):
        Learner(make_steps(), Settings("bc", steps=2, lr=0.1)).restore(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be gone on from"):
        learner.restore(file)
    with pytest.raises(ValueError, match="method 'sac' is unknown"):
        Settings("sac")


@pytest.mark.parametrize("method", ["rwr", "iql"])
def test_a_saved_policy_acts_as_before(tmp_path, method) -> None:
    steps = make_steps()
    steps["action"] *= 3  # beyond [-1, 1]
    actor = Learner(steps, Settings(method)).actor.eval()
    save_policy(actor, steps, tmp_path / "policy.pt", encoder="tiny")
    again, about = load_policy(tmp_path / "policy.pt")
    assert about == {"encoder": "tiny"}
    key = "loc" if method == "iql" else "action"
    assert torch.equal(actor(steps.clone())[key], again(steps.clone())[key])
    actor.train()  # with noise on what it sees
    assert not torch.equal(actor(steps.clone())[key], again(steps.clone())[key])
    (tmp_path / "policy.pt").write_text("no policy")
    with pytest.raises(ValueError, match="is no policy"):
        load_policy(tmp_path / "policy.pt")


def test_a_roll_out_ends_when_the_task_stays_solved() -> None:
    from torchrl_vip.envs import tabletop

    env = tabletop.make_env("close-drawer", image_size=16, max_steps=100)
    script, calls = env.sim.script(), []

    def act(full_state: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(script(full_state.numpy(), len(calls)), dtype=torch.float32)

    actor = TensorDictModule(act, ["full_state"], ["action"])
    out = roll_out(env, actor, 3, hold=5, keep_frames=True, before_step=calls.append)
    assert out.solved and out.steps == len(calls) < 60
    assert out.frames.shape == (out.steps + 1, 16, 16, 3)
    short = roll_out(env, actor, 3, steps=2)
    assert not short.solved and short.steps == 2 and short.frames is None
    env.close()


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_example_goes_from_a_labelled_folder_to_a_film(tmp_path) -> None:
    from torchrl_vip.demonstrations.record import main as record
    from torchrl_vip.label.__main__ import main as label

    demos = tmp_path / "demos"
    options = "--task close-drawer --successes 1 --failures 1 --size 64 --format lerobot --out"
    record([*options.split(), str(demos)])
    labelled, out = tmp_path / "labelled", tmp_path / "run"
    label(
        [
            str(demos / "close-drawer"),
            *"--goal mean-last --encoder tiny --out".split(),
            str(labelled),
        ]
    )
    settings = "--smoke --encoder tiny --task close-drawer --out".split()
    done = run(str(labelled), *settings, str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["rollouts"] == 2 and 0 < result["effective_sample_size"] <= 1
    assert result["settings"]["image_size"] == 64  # the demonstrations'
    assert (out / "film_0.mp4").stat().st_size > 500
    assert load_policy(out / "policy.pt")[1]["encoder"] == "tiny"
    again = run(str(labelled), *settings, str(out))
    assert again.returncode == 1 and "--resume goes on with it" in again.stderr
    bare = run(str(demos / "close-drawer"), "--smoke", "--out", str(tmp_path / "none"))
    assert bare.returncode == 1 and "python -m torchrl_vip.label" in bare.stderr
    assert "Traceback" not in bare.stderr + again.stderr
