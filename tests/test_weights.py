"""Checkpoints: what is saved comes back, what is damaged is named, nothing foreign is run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from torchrl_vip import CheckpointError, VIPEncoder, load_vip, save_vip, weights
from torchrl_vip.encoders import ENCODERS, FrozenEncoder
from torchrl_vip.files import LEFTOVER_AGE

CONFIG = {"licence": "MIT", "success_threshold": 3.5}


def _thin() -> ResNet:
    network = ResNet(BasicBlock, [1, 1, 1, 1])
    network.out_features, network.fc = network.fc.in_features, nn.Identity()
    return network


@pytest.fixture(autouse=True)
def thin(monkeypatch):
    """A backbone of half a ResNet-18, so that these tests are about files and not about time."""
    monkeypatch.setitem(ENCODERS, "thin", _thin)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[VIPEncoder, Path]:
    torch.manual_seed(0)
    ENCODERS["thin"] = _thin
    encoder = VIPEncoder("thin", dim=8, image_size=32, config=CONFIG).eval()
    return encoder, save_vip(encoder, tmp_path_factory.mktemp("saved") / "made" / "here")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to damage."""
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((saved[1] / name).read_bytes())
    return tmp_path


FRAMES = torch.arange(2 * 3 * 40 * 40, dtype=torch.int64).remainder(251).view(2, 3, 40, 40).byte()


# --- round trip ------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_whole(saved):
    encoder, path = saved
    for source in (path, str(path), path / "model.safetensors"):
        again = load_vip(source)
        assert not again.training and again.config == CONFIG
        assert (again.name, again.dim, again.image_size) == ("thin", 8, 32)
        assert all(
            torch.equal(v, encoder.state_dict()[k]) and v.dtype == encoder.state_dict()[k].dtype
            for k, v in again.state_dict().items()
        )
        assert torch.equal(again(FRAMES), encoder(FRAMES))
    assert {p.name for p in path.iterdir()} == {"model.safetensors", "config.json"}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
def test_half_the_size_on_disk_float32_in_memory(saved, tmp_path, dtype, tolerance):
    encoder, path = saved
    save_vip(encoder, tmp_path, dtype=dtype)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < 0.51 * (path / "model.safetensors").stat().st_size
    again = load_vip(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    z, wanted = again(FRAMES), encoder(FRAMES)
    assert 0 < (z - wanted).norm() / wanted.norm() < tolerance
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}  # the caller's stays


def test_without_a_head(tmp_path):
    encoder = VIPEncoder("thin", image_size=32).eval()
    again = load_vip(save_vip(encoder, tmp_path))
    assert again.dim == 512 and isinstance(again.head, nn.Identity)


def test_the_shape_in_config_json_is_the_networks_own(tmp_path):
    encoder = VIPEncoder("thin", dim=8, image_size=32, config={"image_size": 999, "dim": 1})
    again = load_vip(save_vip(encoder, tmp_path))
    assert (again.image_size, again.dim) == (32, 8)


def test_save_refuses_what_could_not_be_rebuilt(tiny_encoder, folder):
    with pytest.raises(ValueError, match="TinyEncoder.*ENCODERS"):
        save_vip(VIPEncoder(tiny_encoder, image_size=32), folder / "new")
    with pytest.raises(TypeError, match="FrozenEncoder; wanted the VIPEncoder"):
        save_vip(FrozenEncoder(VIPEncoder("thin", dim=8)), folder / "new")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(TypeError):  # a config that is no JSON, before anything is written
        save_vip(VIPEncoder("thin", dim=8, config={"made_by": object()}), folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_save_refuses_what_its_dtype_cannot_hold(saved, folder):
    encoder = load_vip(folder)
    next(encoder.parameters()).data.flatten()[0] = 1e5
    with pytest.raises(ValueError, match="not finite as torch.float16"):
        save_vip(encoder, folder, dtype=torch.float16)
    load_vip(folder)  # the old one


def test_killed_while_saving_the_old_checkpoint_stays(saved, folder):
    script = f"""
        import os, signal, sys
        from torchrl_vip import load_vip, save_vip, weights

        def write(state, part):
            part.write_bytes(b"half a fi")
            print("writing", flush=True)
            signal.pause()

        weights.save_file = write
        save_vip(load_vip("tiny"), {str(folder)!r})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    assert len(list(folder.iterdir())) == 3  # it died in the middle: its temporary file is there
    assert torch.equal(load_vip(folder)(FRAMES), saved[0](FRAMES))
    (left,) = folder.glob(".*")
    old = time.time() - 2 * LEFTOVER_AGE
    os.utime(left, (old, old))
    save_vip(load_vip(folder), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_failed_write_leaves_nothing_behind(folder, monkeypatch):
    def write(state, part):
        raise OSError("disk full")

    before = sorted(p.name for p in folder.iterdir())
    monkeypatch.setattr(weights, "save_file", write)
    with pytest.raises(OSError, match="disk full"):
        save_vip(load_vip(folder), folder)
    assert sorted(p.name for p in folder.iterdir()) == before


# --- damage ----------------------------------------------------------------------------------


def change_tensors(change):
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


def change_config(**entries):
    """Entries to set; ... drops one."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | entries
        kept = {k: v for k, v in config.items() if v is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return damage


def write(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def cut(share: float):
    def damage(folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: int(share * len(whole))])

    return damage


WEIGHT = "backbone.conv1.weight"
DAMAGE = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "cut in the header": (cut(0.0001), "model.safetensors.*cut short"),
    "cut in the data": (cut(0.7), "model.safetensors.*cut short"),
    "empty": (cut(0), "model.safetensors.*cut short"),
    "garbage": (write("model.safetensors", b"\xff" * 999), "model.safetensors.*damaged"),
    "no json": (write("config.json", b"{backbone"), "config.json cannot be used"),
    "no text": (write("config.json", b"\xff\xfe\x00"), "config.json cannot be used"),
    "a list": (write("config.json", b"[1, 2]"), "config.json cannot be used"),
    "no backbone": (change_config(backbone=...), "config.json has no entry 'backbone'"),
    "no image size": (change_config(image_size=...), "config.json has no entry 'image_size'"),
    "unknown backbone": (change_config(backbone="vgg"), "config.json.*'vgg' is none of resnet18"),
    "backbone no name": (change_config(backbone=["thin"]), "config.json cannot be used"),
    "negative dim": (change_config(dim=-1), "config.json.*dim is -1"),
    "dim a string": (change_config(dim="8"), "config.json.*dim is '8'"),
    "no size": (change_config(image_size=0), "config.json.*image_size is 0"),
    "huge dim": (change_config(dim=10**9), "config.json.*dim is 1000000000; wanted 16384 at most"),
    "huge image": (change_config(image_size=10**6), "config.json.*image_size.*wanted 2048 at most"),
    "nested": (write("config.json", b"[" * 200_000), "config.json.*nested too deeply"),
    "a huge config": (
        write("config.json", b" " * 10_000_001),
        "config.json.*wanted 10000000 at most",
    ),
    "scale NaN": (change_config(reward_scale=float("nan")), "reward_scale is nan; wanted a finite"),
    "scale infinite": (change_config(reward_scale_other=1e999), "reward_scale_other is inf"),
    "threshold negative": (change_config(success_threshold=-1), "success_threshold is -1; wanted"),
    "scale a text": (change_config(reward_scale="0.1"), "reward_scale is '0.1'; wanted a finite"),
    "scale true": (change_config(reward_scale=True), "reward_scale is True; wanted a finite"),
    "distance zero": (change_config(typical_distance=0), "typical_distance is 0; wanted a finite"),
    "another dim": (change_config(dim=9), r"head.weight of shape \(8, 512\) where \(9, 512\)"),
    "no head": (change_config(head=False), "unknown head.weight"),
    "lacks one": (change_tensors(lambda s: s.pop(WEIGHT)), f"lacks {WEIGHT}"),
    "one too many": (change_tensors(lambda s: s.update(x=torch.ones(1))), "unknown x"),
    "mis-sized": (
        change_tensors(lambda s: s.update({WEIGHT: s[WEIGHT][:7].clone()})),
        r"conv1.weight of shape \(7, 3, 7, 7\) where \(64, 3, 7, 7\)",
    ),
    "NaN": (change_tensors(lambda s: s[WEIGHT][0].fill_(torch.nan)), f"{WEIGHT}.*not finite"),
    "inf": (change_tensors(lambda s: s["head.bias"].fill_(torch.inf)), "head.bias.*not finite"),
}


@pytest.mark.parametrize("damage, says", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(folder, damage, says):
    damage(folder)
    with pytest.raises(CheckpointError, match=says) as error:
        load_vip(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0, "0.1", [1.0]])
def test_a_scale_that_cannot_be_is_not_saved(saved, folder, value):
    encoder = VIPEncoder("thin", dim=8, image_size=32, config={"reward_scale": value})
    before = (folder / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="is not written: reward_scale is"):
        save_vip(encoder, folder)
    with pytest.raises(CheckpointError, match="is not written"):
        save_vip(encoder, folder / "new")
    assert (folder / "config.json").read_bytes() == before and not (folder / "new").exists()


def test_a_missing_path_is_named(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "model.pt", "nowhere/at/all", "model.pt"):
        with pytest.raises(CheckpointError, match="does not exist") as error:
            load_vip(path)
        assert str(path) in str(error.value)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="notes.txt is no checkpoint"):
        load_vip(tmp_path / "notes.txt")


# --- names -----------------------------------------------------------------------------------


def test_a_name_without_weights_lists_the_choices():
    for name in ("resnet34", "resnet50", "no_such_name"):
        with pytest.raises(ValueError, match="efficientnet_lite0.*download=True.*weights='random'"):
            load_vip(name)
    with pytest.raises(ValueError, match="'resnet34'.*'resnet50'"):
        load_vip("resnet34", download=True)
    with pytest.raises(ValueError, match="'pretrained'.*'random'"):
        load_vip("resnet18", weights="pretrained")


def test_random_weights_only_when_asked():
    torch.manual_seed(0)
    first, second = (load_vip("thin", weights="random") for _ in range(2))
    assert first.name == "thin" and not first.training
    assert not torch.equal(first.backbone.conv1.weight, second.backbone.conv1.weight)
    with pytest.raises(ValueError, match="random.*download"):
        load_vip(weights="random", download=True)
    with pytest.raises(ValueError, match="'vgg'.*resnet18"):
        load_vip("vgg", weights="random")
