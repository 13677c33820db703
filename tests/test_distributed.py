"""Several processes take the step that one process would take with all their clips."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from clips import write_folder
from networks import SIZE, tiny_resnet_encoder
from tensordict import TensorDict

from torchrl_vip.losses import TCNLoss, TripletLoss, VIPLoss
from torchrl_vip.pretrain import processes
from torchrl_vip.pretrain.build import freeze

pytestmark = pytest.mark.slow

LOSSES = {"vip": VIPLoss, "tcn": TCNLoss, "triplet": TripletLoss}


def gradients(name: str, rank: int, world: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of this process's part of eight clips, averaged over processes."""
    torch.set_num_threads(1)
    encoder = tiny_resnet_encoder()
    freeze(encoder, None, batch_norm=True)()
    options = {"generator": torch.Generator().manual_seed(5)} if name == "vip" else {}
    objective = LOSSES[name](encoder, l1=0.01, l2=0.1, **options)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(8, 4, 3, SIZE, SIZE, generator=generator)
    reward = torch.tensor([-1.0, 0, -1, -1, -1, -1, 0, -1])
    mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
    losses = objective(TensorDict({"pixels": pixels[mine], "reward": reward[mine]}, [8 // world]))
    loss = sum(v for k, v in losses.items() if k.startswith("loss_"))
    loss.backward()
    parameters = list(encoder.parameters())
    processes.average_gradients(parameters)
    return loss.item(), torch.cat([p.grad.flatten() for p in parameters])


def work(rank: int, name: str, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(gradients(name, rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("name", LOSSES)
def test_two_processes_with_half_the_batch_give_the_gradient_of_one(name, tmp_path: Path) -> None:
    mp.spawn(work, (name, str(tmp_path)), nprocs=2)
    loss, gradient = gradients(name, 0, 1)
    assert gradient.abs().max() > 1e-3
    for rank in range(2):
        loss_too, gradient_too = torch.load(tmp_path / f"{rank}.pt")
        assert loss_too == pytest.approx(loss, abs=1e-5)
        torch.testing.assert_close(gradient_too, gradient, atol=1e-5, rtol=1e-4)


# --- the command line under torchrun --------------------------------------------------------------

SMALL = ("image_size=32", "dim=8", "batch_size=4", "device=cpu", "precision=float32", "loggers=[]")
SMALL += ("freeze_batch_norm=true", "data.validation=0", "progress=false", "ema=0")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(5):
        write_folder(folder / f"{i}", 4 + i, first=20 * i)
    return folder


def torchrun(clips: Path, out: Path, *options: str, count: int = 2) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    where = (f"data.path={clips}", f"out_dir={out}")
    return [*launcher, str(count), "-m", "torchrl_vip.pretrain", *where, *SMALL, *options]


def weights(out: Path, step: int) -> dict[str, torch.Tensor]:
    path = out / "checkpoints" / f"step_{step:08d}.pt"
    return torch.load(path, weights_only=True)["encoder"]


def test_a_run_of_two_processes_is_that_of_one(clips: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        command = torchrun(clips, tmp_path / str(count), "steps=1", "lr=1e-4", count=count)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("training: 5 clips") == 1  # one process speaks
        assert done.stdout.count("done: load_vip") == 1
    one, two = weights(tmp_path / "1", 1), weights(tmp_path / "2", 1)
    # Adam's first step is lr times the sign of the gradient: almost all signs agree.
    moved = torch.cat(
        [(one[k] - two[k]).abs().flatten() for k in one if one[k].is_floating_point()]
    )
    assert (moved < 1e-6).float().mean() > 0.99


def test_a_batch_that_does_not_divide_is_refused(clips: Path, tmp_path: Path) -> None:
    command = torchrun(clips, tmp_path / "run", "batch_size=5", "steps=1")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "batch_size=5 does not divide over 2 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def test_one_process_dying_ends_the_run_and_it_can_be_resumed(clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("steps=100000", "checkpoint_every=5")
    run = subprocess.Popen(torchrun(clips, out, *options), stderr=subprocess.PIPE, text=True)
    folder = out / "checkpoints"
    while not list(folder.glob("step_*.pt")):
        assert run.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    victims = [
        int(pid)
        for pid in children
        if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    ]
    os.kill(victims[0], signal.SIGKILL)
    said = run.communicate(timeout=120)[1]
    assert run.returncode != 0
    assert "lost the others" in said or "Signal 9 (SIGKILL)" in said
    last = max(int(path.stem[5:]) for path in folder.glob("step_*.pt"))
    again = torchrun(clips, out, f"steps={last + 2}")
    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0 and f"resumed from step {last}" in done.stdout, done.stderr
