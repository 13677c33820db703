"""The reinforcement-learning examples run, resume, take every reward, and name a worker that dies."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensordict import TensorDict
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import TransformedEnv

from torchrl_vip import VIPRewardTransform, VIPTransform, load_vip

pytest.importorskip("metaworld")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import common
import drq
import goal_switching
import runs
import sac
import workers

CONFIGS = {"sac": sac.SACConfig, "drq": drq.DrQConfig, "goal_switching": goal_switching.GoalConfig}


def command(script: str, out: Path, *flags) -> list[str]:
    return [sys.executable, str(EXAMPLES / f"{script}.py"), "--smoke", "--out", str(out), *flags]


def run(script: str, out: Path, *flags) -> subprocess.CompletedProcess:
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(script, out, *flags), capture_output=True, text=True, timeout=300, env=one_thread
    )


@pytest.fixture
def run_here(monkeypatch):
    """Runs a script in this process: to start another takes longer than a smoke run."""

    def run_here(script: str, out: Path, *flags: str) -> None:
        monkeypatch.setattr(sys, "argv", command(script, out, *flags)[1:])
        importlib.import_module(script).main()

    return run_here


def steps_logged(out: Path) -> list[int]:
    rows = (out / "csv/scalars/train/return.csv").read_text().splitlines()
    return [int(row.split(",")[0]) for row in rows]


def read_stored(out: Path) -> dict[str, torch.Tensor]:
    rows = torch.load(out / "checkpoint.pt", weights_only=True)["buffer"]["rows"]
    return dict(TensorDict(rows, [len(rows["action"])]).flatten_keys().items())


# -- the environment --------------------------------------------------------------------------------


@pytest.mark.parametrize("goals", [0, 2])
def test_cameras_joined_by_a_plus_are_one_embedding_and_one_goal(goals: int) -> None:
    cfg = sac.SACConfig(
        camera="corner4+behindGripper", image_size=32, max_steps=4, frame_skip=1, encoder="tiny"
    )
    env = sac.make_env(0, cfg=cfg, goal=common.goal_images(cfg, goals) or None, film=True)
    episode = env.rollout(4)
    size = 2 * VIPTransform("tiny").dim
    assert episode["vip_vec"].shape == episode["goal_embedding"].shape == (4, size)
    distance = (episode["next", "vip_vec"] - episode["goal_embedding"]).norm(dim=-1)
    before = (episode["vip_vec"] - episode["goal_embedding"]).norm(dim=-1)
    unit = episode["next", "vip_reward"].squeeze(-1) / (before - distance)
    torch.testing.assert_close(unit, unit[:1].expand(4))  # what scale="auto" found
    _, frames = runs.evaluate(env, None, 1)
    assert frames.shape == (4, 32, 64, 3)
    # each half of the goal is the embedding of its own camera's picture
    if goals == 0:
        halves = episode["goal_image"][0]
        alone = VIPTransform("tiny").embed(halves)
        torch.testing.assert_close(
            episode["goal_embedding"][0], alone.flatten(), atol=1e-3, rtol=1e-3
        )
        assert not torch.equal(halves[0], halves[1])
    env.close()


@pytest.mark.parametrize(
    "example, shares, parts_of",
    [("sac", None, [0.5, 0.5]), ("drq", None, [0.5, 0.5]), ("sac", "1+3", [0.25, 0.75])],
)
def test_each_camera_has_its_part_in_the_reward(example, shares, parts_of) -> None:
    make_env = {"sac": sac.make_env, "drq": drq.make_env}[example]
    cfg = CONFIGS[example](
        camera="corner4+corner4/no-robot",
        camera_shares=shares,
        image_size=32,
        max_steps=4,
        frame_skip=1,
        encoder="tiny",
    )
    cfg = replace(cfg, observation="embedding") if example == "drq" else cfg
    env = make_env(common.EVALUATION_SEED - 1, cfg=cfg)
    episodes = [env.rollout(4) for _ in range(3)]
    statistics = common.input_statistics(partial(make_env, cfg=cfg), cfg)

    def distances(episode, *prefix):  # [T, 2]
        way = episode[(*prefix, "vip_vec")] - episode["goal_embedding"]
        return way.unflatten(-1, (2, -1)).norm(dim=-1)

    starts = torch.stack([distances(episode)[0] for episode in episodes])
    torch.testing.assert_close(
        statistics["camera_weights"], torch.tensor(parts_of) / starts.mean(0)
    )
    assert starts[0, 0] > 1.5 * starts[0, 1]  # the arm moves more than the button
    episode = make_env(1, cfg=cfg, statistics=statistics, film=True).rollout(4)
    falls = (distances(episode) - distances(episode, "next")) * statistics["camera_weights"]
    torch.testing.assert_close(episode["next", "vip_reward"], falls.sum(-1, keepdim=True))
    way = (episode["vip_vec"] - episode["goal_embedding"]) / statistics["z_scale"]
    parts = way[0].unflatten(-1, (2, -1)).norm(dim=-1)
    assert 0.5 < parts[0] / parts[1] < 2  # and in what the networks see


@pytest.mark.parametrize("shares", ["1", "1+x", "1+0", "1+nan", "1+2+3", ""])
def test_camera_shares_are_a_number_for_each_camera(shares: str) -> None:
    with pytest.raises(ValueError, match=r"2 positive numbers joined by \+ are wanted"):
        CONFIGS["sac"](camera="corner4+topview", camera_shares=shares).shares  # noqa: B018  (a property raises)


def test_pixels_of_several_cameras_are_refused(tmp_path, run_here) -> None:
    with pytest.raises(SystemExit, match="--observation embedding"):
        run_here("drq", tmp_path / "run", "--camera", "corner4+behindGripper")
    assert not (tmp_path / "run").exists()


# -- whole runs -------------------------------------------------------------------------------------


def test_sac_runs_and_resumes(tmp_path, run_here):
    out = tmp_path / "run"
    first = run("sac", out)
    assert first.returncode == 0, first.stderr
    assert "unseen starts" in first.stdout
    assert steps_logged(out) == [12, 24, 36]
    assert list((out / "tensorboard").glob("events*"))
    assert (out / "videos/step_0000036.mp4").stat().st_size > 1_000
    for name in ("success_last", "success_any", "return"):
        assert (out / f"csv/scalars/final/{name}.csv").exists()
    stored = read_stored(out)
    assert all(tensor.dtype != torch.uint8 for tensor in stored.values())  # never pixels
    assert not [key for key in stored if "full_state" in key or "goal" in key]

    # as if it had been killed after it logged more than its last checkpoint knows
    with (out / "csv/scalars/train/return.csv").open("a") as file:
        file.write("48,123.0\n")
    settings = json.loads((out / "config.json").read_text())
    del settings["action_cost"]  # a run of before there was this flag
    (out / "config.json").write_text(json.dumps(settings))
    run_here("sac", out, "--resume", "--steps", "60")
    assert steps_logged(out) == [12, 24, 36, 48, 60]
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [e.step for e in board.Scalars("train/return")] == [12, 24, 36, 48, 60]
    resumed = read_stored(out)
    assert len(resumed["action"]) == 30  # each held for two steps
    assert torch.equal(resumed["observation"][:18], stored["observation"])
    assert not list(out.glob("**/.*.part"))

    done = run("sac", out, "--resume")
    assert done.returncode == 1 and "--steps takes it further" in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(SystemExit) as changed:
        run_here("sac", out, "--resume", "--lr", "1", "--reward", "dense")
    assert "lr" in str(changed.value) and "reward" in str(changed.value)

    kept = torch.load(out / "checkpoint.pt", weights_only=True)
    del kept["average"]  # a run of before there was one
    torch.save(kept, out / "checkpoint.pt")
    with pytest.raises(SystemExit, match="has no average"):
        run_here("sac", out, "--resume", "--steps", "72")


@pytest.mark.slow
@pytest.mark.parametrize("stays, is_actor", [(0.0, True), (0.999, False)])
def test_the_average_of_the_actor_is_evaluated(stays, is_actor, tmp_path, monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        runs.Run, "evaluate", lambda self, env, policy: evaluated.append(policy.state_dict())
    )
    flags = ["--smoke", "--average", str(stays), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sac.py", *flags])
    sac.main()
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["average"]["n_averaged"] == 18
    for name, value in evaluated[-1].items():
        assert torch.equal(value, kept["average"][f"module.{name}"])
        actor = kept["loss"][f"actor_network_params.{name}"]
        assert torch.equal(value, actor) == is_actor


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags, resumed",
    [
        ("drq", (), False),
        ("drq", ("--observation", "embedding", "--goals", "0"), True),  # n-step buffer
        ("goal_switching", (), True),  # hindsight buffer
    ],
)
def test_smoke(script, flags, resumed, tmp_path, run_here):
    out = tmp_path / "run"
    run_here(script, out, *flags)
    assert steps_logged(out)[-1] == 36
    if resumed:
        run_here(script, out, *flags, "--resume", "--steps", "60")
        assert steps_logged(out)[-2:] == [48, 60]


@pytest.mark.slow
def test_smoke_on_a_node_of_ray(tmp_path):
    pytest.importorskip("ray", reason='Ray is absent: pip install "torchrl-vip[ray]"')
    result = run("sac", tmp_path / "run", "--processes", "2", "--collector", "ray")
    assert result.returncode == 0, result.stderr
    assert steps_logged(tmp_path / "run") == [24, 36]
    assert len((result.stdout + result.stderr).splitlines()) <= 20


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_ctrl_c_is_a_line_that_says_how_to_go_on(workers, tmp_path):
    flags = ["--processes", workers, "--steps", "1000000", "--eval-every", "1000000"]
    flags += ["--encoder", "tiny", "--image-size", "64"]
    process = subprocess.Popen(
        command("sac", tmp_path, *flags),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # a shell's background job, and so its children, ignore Ctrl-C
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    rows = tmp_path / "csv/scalars/train/return.csv"
    try:
        deadline = time.time() + 400
        while not (rows.exists() and rows.read_text().count("\n") >= 3):
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    shown = [line for line in errors.splitlines() if line.strip() and "/1000000" not in line]
    assert len(shown) == 1, errors
    assert re.fullmatch(
        r"stopped by Ctrl-C: --resume continues from the last checkpoint, step \d+", shown[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags, resumed",
    [
        ("sac", ("--processes", "2", "--collector", "distributed"), False),
        ("goal_switching", ("--processes", "2"), True),
        ("sac", ("--compile",), False),
    ],
)
def test_smoke_in_a_process_of_its_own(script, flags, resumed, tmp_path):
    out = tmp_path / "run"
    result = run(script, out, *flags)
    assert result.returncode == 0, result.stderr
    assert steps_logged(out)[-1] == 36
    if resumed:
        result = run(script, out, *flags, "--resume", "--steps", "60")
        assert result.returncode == 0, result.stderr
        assert steps_logged(out)[-2:] == [36, 60]


@pytest.mark.slow
@pytest.mark.parametrize("collector", [(), ("--overlap",), ("--collector", "distributed")])
def test_a_killed_worker_is_named(collector, tmp_path):
    out = tmp_path / "run"
    flags = ["--processes", "2", "--steps", "1000000", "--eval-every", "1000000", *collector]
    process = subprocess.Popen(
        command("sac", out, *flags),
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )
    try:
        rows = out / "csv/scalars/train/return.csv"
        deadline = time.time() + 180
        while not (rows.exists() and rows.read_text().count("\n") >= 2):
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [
            pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
        ]
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
        try:
            _, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # prints where every thread stands
            _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 1, errors
    assert re.search(rf"worker 1 \(process {workers[1]}\) died with exit code -9", errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("collector", ["process", "distributed"])
def test_an_error_beside_workers_ends_the_run(collector, tmp_path):
    code = """
import sys, sac
def save(self, **parts):
    raise OSError("disk full")
sac.Run.save = save
if __name__ == "__main__":
    sac.main()
"""
    (tmp_path / "script.py").write_text(code)
    words = [
        "--smoke",
        "--processes",
        "2",
        "--collector",
        collector,
        "--out",
        str(tmp_path / "run"),
    ]
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *words],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES)},
    )
    assert ended.returncode == 1 and "OSError: disk full" in ended.stderr


def test_a_worker_draws_by_its_own_seed(monkeypatch):
    def draw(seed):
        workers.seeded(lambda seed: None, seed)
        return torch.rand(1).item()

    assert draw(1) != draw(1)  # the main process has the seed of its flags
    monkeypatch.setattr(workers.multiprocessing, "parent_process", object)
    assert draw(1) == draw(1) != draw(2)


def test_the_cause_is_named_and_not_those_that_torchrl_terminates_for_it():
    def worker(exitcode):
        return SimpleNamespace(pid=7, exitcode=exitcode)

    assert "worker 1 (process 7) died with exit code -9" in workers._death(
        [worker(-15), worker(-9), worker(None)]
    )
    assert "worker 1" in workers._death([worker(0), worker(-15)])  # nothing else to blame
    assert workers._death([worker(None), worker(0)]) is None


def whole_episodes(count: int, length: int) -> TensorDict:
    """``[count, length]``, as workers bring them."""
    ends = torch.zeros(count, length, 1, dtype=torch.bool)
    ends[:, -1] = True
    rows = {"x": torch.arange(count * length).view(count, length)}
    rows["next"] = {"done": ends, "truncated": ends.clone()}
    return TensorDict(rows, [count, length])


@pytest.mark.parametrize("steps, kept", [(48, 12), (36, 6), (40, 8), (24, None), (37, 7)])
def test_several_workers_do_exactly_the_steps_of_a_run(steps, kept):
    cfg = sac.SACConfig(steps=steps, frame_skip=2)
    batches = list(workers.batches(map(whole_episodes, [2, 2], [6, 6]), cfg, 0))
    assert [len(batch) for batch in batches] == ([12] if kept is None else [12, kept])
    last = batches[-1]
    assert last["x"].tolist() == list(range(kept or 12))  # in a row
    for key in ("done", "truncated"):
        assert last["next", key][-1].all()  # who continues the run begins another episode
    if kept == 8:
        assert last["next", "done"].squeeze(-1).nonzero().flatten().tolist() == [5, 7]


def test_without_ray_a_line_has_the_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # its import fails
    flags = ["--collector", "ray", "--processes", "2", "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["sac.py", *flags])
    with pytest.raises(SystemExit) as ended:
        sac.main()
    assert re.fullmatch(
        r'error: --collector ray: .*pip install "torchrl-vip\[ray\]"', ended.value.code
    )
    assert not (tmp_path / "run").exists()


class RayError(Exception):
    """As in ray.exceptions, which need not be there."""


class RayTaskError(RayError):
    pass


def test_a_ray_worker_that_died_is_a_line_that_says_how_to_go_on(tmp_path, monkeypatch):
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(exceptions=exceptions))
    death = RayError(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Collector\n\tpid: 77\n"
        "\tip: 10.0.0.1\nThe actor is dead because its worker process has died. Worker exit type: "
        "SYSTEM_ERROR Worker exit detail: it was killed."
    )
    with pytest.raises(SystemExit) as ended, runs.Run(sac.SACConfig(out=str(tmp_path))) as run:
        raise death
    line = ended.value.code
    assert "\n" not in line and "a Ray worker died (pid 77, ip 10.0.0.1" in line
    assert "no checkpoint was written yet" in line
    with pytest.raises(SystemExit) as ended, runs.Run(sac.SACConfig(out=str(tmp_path))) as run:
        run._saved = 24
        raise death
    assert "--resume continues from the last checkpoint, step 24" in ended.value.code
    # what a worker's own code raised has its traceback
    for own in (RayTaskError("zero"), RayError("an error raised in its creation task"), OSError()):
        assert workers.death_on_ray(own) is None


def test_an_interruption_says_how_to_go_on(tmp_path):
    run = runs.Run(sac.SACConfig(out=str(tmp_path)))
    with pytest.raises(KeyboardInterrupt, match="no checkpoint was written yet"), run:
        raise KeyboardInterrupt


def test_an_interruption_inside_a_loss_says_how_to_go_on(tmp_path):
    layer = torch.nn.Linear(1, 1)
    parameters = TensorDict.from_module(layer)
    run = runs.Run(sac.SACConfig(out=str(tmp_path)))
    with (
        pytest.raises(KeyboardInterrupt, match="no checkpoint was written yet"),
        run,
        parameters.to_module(layer),  # whose end turns it into a RuntimeError
    ):
        raise KeyboardInterrupt


def test_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(SystemExit, match="--resume continues it"):
        runs.Run(sac.SACConfig(out=str(tmp_path)))


def test_a_run_of_another_script_is_not_continued(tmp_path):
    began = json.dumps(asdict(sac.SACConfig(goals=5)))
    (tmp_path / "config.json").write_text(began)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(SystemExit, match="of another script or version.*alpha"):
        runs.Run(drq.DrQConfig(out=str(tmp_path), resume=True))
    assert (tmp_path / "config.json").read_text() == began


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("checkpoint.pt", b"", "checkpoint.pt is damaged"),
        ("checkpoint.pt", b"PK\x03\x04 cut", "checkpoint.pt is damaged"),
        ("config.json", b'{"task": "rea', "config.json cannot be read"),
        ("config.json", None, "config.json cannot be read"),
    ],
)
def test_a_damaged_run_is_an_error_that_names_the_file(name, content, says, tmp_path):
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / "config.json").write_text(json.dumps(asdict(sac.SACConfig())))
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit, match=says):
        runs.Run(sac.SACConfig(out=str(tmp_path), resume=True))


def test_a_file_is_no_folder_of_a_run(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(SystemExit, match="--out .*run: "):
        runs.Run(sac.SACConfig(out=str(tmp_path / "run")))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    mine = tmp_path / "csv" / "mine.csv"
    mine.parent.mkdir()
    mine.touch()
    for config in (None, '{"backbone": "resnet18"}', "no json"):
        if config:
            (tmp_path / "config.json").write_text(config)
        with pytest.raises(SystemExit, match="has files of something else"):
            runs.Run(sac.SACConfig(out=str(tmp_path)))
    assert mine.exists()
    (tmp_path / "config.json").write_text(json.dumps(vars(sac.SACConfig())))  # left no checkpoint
    runs.Run(sac.SACConfig(out=str(tmp_path))).close()
    assert not mine.exists()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--task", "push"], "--task push: --suite metaworld has assembly-v3"),
        (["--suite", "atari"], "invalid choice: 'atari'"),
        (["--image-size", "85"], "--image-size 85: the videos want an even number"),
        (["--eval-every", "0"], "--eval-every 0: wanted more than 0"),
        (["--alpha", "0"], "--alpha 0.0: wanted more than 0"),
        (["--updates-per-step", "-1"], "--updates-per-step -1.0: wanted more than 0"),
        (["--action-cost", "nan"], "--action-cost nan: wanted 0 or more"),
        (["--goals", "-1"], "--goals -1: wanted 0 or more"),
        (["--gamma", "2"], "--gamma 2.0: wanted from 0 to 1"),
        (["--camera", "corner4+corner4"], "--camera corner4+corner4: wanted different ones"),
        (["--overlap"], "--processes says how many"),
        (["--collector", "ray"], "--processes says how many"),
    ],
)
def test_a_wrong_flag_is_told_at_once(flags, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sac.py", *flags])
    with pytest.raises(SystemExit):
        common.parse(sac.SACConfig, "", {})
    assert says in capsys.readouterr().err


def test_help_names_every_field():
    shown = subprocess.run(
        [sys.executable, EXAMPLES / "drq.py", "--help"], capture_output=True, text=True
    ).stdout
    for name in CONFIGS["drq"].__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in shown


# -- parts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base_env():
    from torchrl_vip.envs import metaworld

    env = metaworld.make_env("drawer-open-v3", image_size=64, seed=0, max_steps=4)
    yield env
    env.close()


@pytest.mark.parametrize("choice", ["vip", "sparse", "dense", "vip+sparse"])
def test_the_reward_that_is_asked_for(choice, base_env, tiny_encoder):
    env = TransformedEnv(base_env, VIPTransform(tiny_encoder, size=32))
    env.append_transform(VIPRewardTransform(goal=torch.ones(3), mode="keep", scale=1.0))
    env.append_transform(common.TrainingReward(choice))
    env.reward_spec  # noqa: B018  (built without an error)
    steps = env.rollout(3)["next"]
    terms = {
        "vip": 10.0 * steps["vip_reward"],
        "sparse": steps["success"].float(),
        "dense": 0.1 * steps["dense_reward"],
    }
    wanted = sum(terms[name] for name in choice.split("+"))
    torch.testing.assert_close(steps["reward"], wanted)
    assert (steps["dense_reward"] > 0).any()


def test_an_action_has_a_cost(base_env, tiny_encoder):
    env = TransformedEnv(base_env, VIPTransform(tiny_encoder, size=32))
    env.append_transform(VIPRewardTransform(goal=torch.ones(3), mode="keep", scale=1.0))
    env.append_transform(common.TrainingReward("dense", action_cost=0.4))
    steps = env.rollout(3)
    effort = steps["action"].square().mean(-1, keepdim=True)
    wanted = 0.1 * steps["next", "dense_reward"] - 0.4 * effort
    torch.testing.assert_close(steps["next", "reward"], wanted)


def test_the_policy_is_told_how_far_each_camera_is_from_its_goal():
    seen = TensorDict(
        z=torch.ones(1, 4), z_goal=torch.tensor([[4.0, 5.0, 1.0, 3.0]]), s=torch.tensor([[7.0]])
    )
    observation = sac.ToGoal(cameras=2)._call(seen)["observation"]
    assert observation.tolist() == [[3.0, 4.0, 0.0, 2.0, 7.0, 5.0, 2.0]]


def test_hindsight_reward_is_the_training_reward():
    """In units of the scaled embeddings, for the goal in the rows: computed by hand."""
    batch = TensorDict(
        {
            "z": torch.tensor([[0.0, 0.0]]),
            "z_goal": torch.tensor([[3.0, 0.0]]),
            "next": {"z": torch.tensor([[1.0, 0.0]])},
        },
        [1],
    )
    calibration = {"reward_scale": 0.1, "success_threshold": 5.0}
    options = {"unit": torch.tensor(2.0), "calibration": calibration, "weights": torch.ones(1)}
    reward = goal_switching.hindsight_reward(batch, choice="vip", **options)
    assert reward.shape == (1, 1)
    assert reward.item() == pytest.approx(10 * 0.1 * (6.0 - 4.0))  # distances 3 and 2, unit 2
    both = goal_switching.hindsight_reward(batch, choice="vip+sparse", **options)
    assert both.item() == pytest.approx(2.0 + 1.0)  # 4 is below the threshold


def test_hindsight_reward_needs_of_a_checkpoint_what_it_is_made_of():
    """One that pretrain writes has no threshold."""
    batch = TensorDict(
        z=torch.zeros(1, 2), z_goal=torch.ones(1, 2), next={"z": torch.zeros(1, 2)}, batch_size=[1]
    )
    options = {"unit": torch.tensor(1.0), "weights": torch.ones(1)}
    options["calibration"] = {"reward_scale": 0.1}
    assert goal_switching.hindsight_reward(batch, choice="vip", **options).item() == 0
    with pytest.raises(KeyError, match="success_threshold"):
        goal_switching.hindsight_reward(batch, choice="sparse", **options)


def test_hindsight_reward_of_two_cameras_is_the_training_reward():
    """Each camera's distance has its own unit in "z" and its own weight."""
    cfg = goal_switching.GoalConfig(
        camera="corner4+corner4/no-robot", image_size=32, max_steps=4, frame_skip=1, encoder="tiny",
        action_cost=0.3,
    )  # fmt: skip
    statistics = common.input_statistics(partial(goal_switching.make_env, cfg=cfg), cfg)
    env = goal_switching.make_env(3, cfg=cfg, statistics=statistics)  # begins far from its goal
    steps = env.rollout(4)
    calibration = load_vip("tiny").config
    options = {"unit": statistics["z_scale"], "weights": statistics["camera_weights"]}
    options |= {"calibration": calibration, "action_cost": cfg.action_cost}
    reward = goal_switching.hindsight_reward(steps, choice="vip", **options)
    torch.testing.assert_close(reward, steps["next", "reward"], atol=1e-4, rtol=1e-3)
    # a success is as near as the checkpoint says, in parts of the way; the goal itself is one
    steps["next", "z"][-1] = steps["z_goal"][-1]
    reached = goal_switching.hindsight_reward(steps, choice="vip+sparse", **options)
    vip = goal_switching.hindsight_reward(steps, choice="vip", **options)
    assert (reached - vip).squeeze(-1).tolist() == pytest.approx([0, 0, 0, 1], abs=1e-5)
    env.close()


def test_random_shift_moves_whole_frames():
    frames = torch.zeros(64, 1, 9, 9)
    frames[:, :, 4, 4] = 1
    shifted = drq.random_shift(frames, 2)
    assert shifted.shape == frames.shape
    place = shifted[:, 0].flatten(1).argmax(1)
    rows, columns = place // 9, place % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(shifted.sum((1, 2, 3)), torch.ones(64))
    assert torch.equal(drq.random_shift(frames, 0), frames)


def test_a_full_buffer_goes_on_where_it_was():
    def make():
        return TensorDictReplayBuffer(storage=LazyTensorStorage(4), batch_size=2)

    def rows(*values):
        return TensorDict({"x": torch.tensor(values)}, [len(values)])

    first, second = make(), make()
    first.extend(rows(0, 1, 2, 3))
    first.extend(rows(4, 5))  # over the oldest
    runs.fill(second, runs.rows_of(first))
    for buffer in (first, second):
        buffer.extend(rows(6))
    assert second[:]["x"].tolist() == first[:]["x"].tolist() == [4, 5, 6, 3]


def test_starts_of_training_and_evaluation_are_apart():
    seeds = [
        common.training_seed(CONFIGS["sac"](seed=seed), worker, step)
        for seed in (0, 99)
        for worker in (0, 999)
        for step in (0, 10_000_000)
    ]
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < common.EVALUATION_SEED - 1
