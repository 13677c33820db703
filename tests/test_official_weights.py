"""The official model.pt: its layout, its download, and files that only look like it."""

import os
import pickle
import subprocess
import sys
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import torchvision
from torch import nn

from torchrl_vip import CheckpointError, load_vip, preprocess, weights


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> tuple[nn.Module, Path]:
    """A ResNet-50 with fc 2048 -> 1024 stored as the official trainer stores it."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    network.fc = nn.Linear(2048, 1024)
    state = {f"module.convnet.{k}": v for k, v in network.state_dict().items()}
    path = tmp_path_factory.mktemp("official") / "model.pt"
    torch.save({"vip": state}, path)
    return network.eval(), path


@pytest.fixture
def small(tmp_path) -> Path:
    """A readable .pt of another layout, quick to download."""
    path = tmp_path / "served.pt"
    torch.save({"vip": {"module.convnet.fc.bias": torch.ones(1024)}}, path)
    return path


@pytest.mark.slow
def test_the_official_layout(official, monkeypatch):
    network, path = official
    monkeypatch.setattr(weights, "_licence_said", False)
    with pytest.warns(UserWarning, match="CC BY-NC 4.0"):
        encoder = load_vip(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        load_vip(str(path))
    assert (encoder.name, encoder.dim, encoder.image_size) == ("resnet50", 1024, 224)
    assert "CC BY-NC" in encoder.config["licence"] and not encoder.training
    frame = torch.randint(0, 256, (1, 3, 90, 120), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(encoder(frame), network(preprocess(frame)))


@pytest.mark.slow
@pytest.mark.parametrize("source", [None, "resnet50"])
def test_download_opens_what_it_fetched(official, tmp_path, monkeypatch, source):
    network, path = official
    monkeypatch.setattr(weights, "OFFICIAL_URL", path.as_uri())
    monkeypatch.setattr(weights, "_licence_said", True)
    encoder = load_vip(source, download=True, download_path=tmp_path / "cache")
    assert torch.equal(encoder.head.weight, network.fc.weight)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["vip_resnet50.pt"]


# --- download --------------------------------------------------------------------------------


def test_download_is_cached(small, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "OFFICIAL_URL", small.as_uri())
    path = weights.download_official(tmp_path / "cache")
    assert path.read_bytes() == small.read_bytes()
    small.unlink()
    assert weights.download_official(tmp_path / "cache") == path


def test_the_cache_is_torch_hubs_by_default(small, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = weights.download_official(url=small.as_uri())
    assert path == tmp_path / "hub" / "checkpoints" / "vip_resnet50.pt" and path.is_file()


def test_two_processes_download_at_once(small, tmp_path):
    script = (
        "import sys; from torchrl_vip import weights; print('ready', flush=True); "
        "sys.stdin.readline(); print(weights.download_official(sys.argv[1], url=sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), small.as_uri()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and Path(out.strip()).read_bytes() == small.read_bytes()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["vip_resnet50.pt"]


def test_offline_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "OFFICIAL_URL", (tmp_path / "nothing.pt").as_uri())
    with pytest.raises(CheckpointError, match="could not download") as error:
        load_vip(download=True, download_path=tmp_path / "cache")
    for advice in ("bundled", "another machine", str(tmp_path / "cache" / "vip_resnet50.pt")):
        assert advice in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_connection_that_closes_early_leaves_no_half_file(small, tmp_path):
    class Closing(BaseHTTPRequestHandler):
        def do_GET(self):
            content = small.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Closing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/model.pt"
        with pytest.raises(CheckpointError, match="could not download"):
            weights.download_official(tmp_path / "cache", url=url)
        server.shutdown()
    assert list((tmp_path / "cache").iterdir()) == []


# --- files that only look like it ------------------------------------------------------------


class Touch:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_not_run(tmp_path):
    trap = Touch(tmp_path / "sprung")
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"vip": trap}))
    torch.save({"vip": trap}, tmp_path / "saved.pt")
    for name in ("model.pt", "saved.pt"):
        with pytest.raises(CheckpointError, match=name):
            load_vip(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    torch.load(tmp_path / "saved.pt", weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap works: it was weights_only that held


@pytest.mark.parametrize(
    "content, says",
    [
        ({"state_dict": {}}, "no 'vip' state dict"),
        (torch.ones(3), "no 'vip' state dict"),
        ({"vip": [1, 2]}, "no 'vip' state dict"),
        ({"vip": {}}, "lacks backbone.conv1.weight.*more"),
        ({"vip": {0: torch.ones(1)}}, "lacks backbone.conv1.weight"),
        ({"vip": {"module.convnet.fc.bias": torch.ones(7)}}, "lacks backbone"),
    ],
)
def test_a_foreign_pt_is_named(tmp_path, monkeypatch, content, says):
    monkeypatch.setitem(weights.ENCODERS, "resnet50", weights.ENCODERS["resnet18"])  # quicker
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=says) as error:
        load_vip(tmp_path / "foreign.pt")
    assert str(tmp_path / "foreign.pt") in str(error.value)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_damaged_pt_is_named(small, share):
    whole = small.read_bytes()
    small.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="served.pt.*damaged, cut short or foreign"):
        load_vip(small)
