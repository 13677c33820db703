"""Checkpoints of the Hugging Face Hub: huggingface_hub's own code, against a server on this machine."""

import json
import sys
from pathlib import Path

import pytest
import torch
from hub_server import TOKEN, commit_of, serving
from torch import nn

from torchrl_vip import CheckpointError, VIPEncoder, VIPTransform, hub, load_vip, save_vip
from torchrl_vip.encoders import ENCODERS

pytest.importorskip("huggingface_hub", reason=hub.INSTALL)

FRAMES = torch.arange(2 * 3 * 40 * 40).remainder(251).view(2, 3, 40, 40).byte()
REPO = "someone/vip"


def _small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(4 * 16, 6))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(ENCODERS, "small", _small)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """In an empty folder: what exists there wins over the Hub. Afterwards nothing imported here is left."""
    monkeypatch.chdir(tmp_path)
    yield
    for name in hub_modules():
        del sys.modules[name]


def encoder_of(seed: int) -> VIPEncoder:
    torch.manual_seed(seed)
    return VIPEncoder("small", dim=5, image_size=32, config={"licence": "MIT"}).eval()


def checkpoint(folder: Path, seed: int) -> dict[str, bytes]:
    save_vip(encoder_of(seed), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def hub_modules() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]


def start_anew(monkeypatch, **environment: str) -> None:
    """The next ``import huggingface_hub`` reads its environment variables again."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in hub_modules():
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Two commits of one repository, 0 on the branch main and 1 on "better"."""
    with serving() as server:
        extra = {"model.pt": b"a pickle", "train.py": b"print()", "README.md": b"---\n---\n"}
        server.branches[REPO] = {
            "main": checkpoint(tmp_path / "a", 0) | extra,
            "better": checkpoint(tmp_path / "b", 1),
        }
        start_anew(monkeypatch, HF_ENDPOINT=server.url, HF_HOME=str(tmp_path / "cache"))
        yield server


def cached_files(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("hub/models--*/snapshots/*/*")}


def same(first: VIPEncoder, second: VIPEncoder) -> bool:
    return torch.equal(first(FRAMES), second(FRAMES))


# --- reading ---------------------------------------------------------------------------------------


def test_a_checkpoint_is_read_from_the_hub_its_two_files_and_nothing_else(server, tmp_path):
    vip = load_vip(REPO)
    assert same(vip, encoder_of(0)) and not vip.training
    assert vip.config == {"licence": "MIT"}
    assert cached_files(tmp_path) == {"model.safetensors", "config.json"}
    assert not any(name in asked for asked in server.requests for name in ("model.pt", "train.py"))


def test_a_revision_is_a_branch_or_a_commit(server):
    commit = commit_of(server.branches[REPO]["better"])
    assert same(load_vip(REPO, revision="better"), encoder_of(1))
    assert same(load_vip(REPO, revision=commit), encoder_of(1))
    assert not same(load_vip(REPO), encoder_of(1))


def test_the_transform_takes_a_repository(server):
    assert torch.allclose(VIPTransform(REPO).embed(FRAMES), encoder_of(0)(FRAMES), atol=1e-5)


def test_what_was_read_before_is_read_without_a_connection(server, tmp_path, monkeypatch):
    load_vip(REPO)
    asked = len(server.requests)
    start_anew(monkeypatch, HF_HOME=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    assert same(load_vip(REPO), encoder_of(0))
    assert len(server.requests) == asked


def test_an_existing_path_wins_over_the_hub(server, tmp_path):
    save_vip(encoder_of(2), tmp_path / REPO)
    assert same(load_vip(REPO), encoder_of(2))
    assert not server.requests
    with pytest.raises(ValueError, match=f"revision='better'.*got '{REPO}'.*path that exists wins"):
        load_vip(REPO, revision="better")


@pytest.mark.parametrize(
    "source", [None, "tiny", "./someone/vip", "a/b/c", "someone/vip.pt", Path(REPO)]
)
def test_a_revision_is_for_repositories(source):
    with pytest.raises(ValueError, match="revision='main' goes with a repository of the Hub"):
        load_vip(source, revision="main")


@pytest.mark.parametrize("path", ["./someone/vip", "a/b/c", "someone/model.pt", Path(REPO)])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(server, path):
    with pytest.raises(CheckpointError, match="does not exist: wanted a folder"):
        load_vip(path)
    assert not server.requests


# --- what can go wrong -------------------------------------------------------------------------------


def test_a_missing_repository_is_named(server):
    with pytest.raises(
        CheckpointError, match="no/where does not exist here.*no repository no/where"
    ):
        load_vip("no/where")


def test_a_private_repository_asks_for_a_log_in(server, monkeypatch, tmp_path):
    server.access[REPO] = "private"
    with pytest.raises(CheckpointError, match=f"no repository {REPO}, or it is private.*HF_TOKEN"):
        load_vip(REPO)
    home = str(tmp_path / "cache")
    start_anew(monkeypatch, HF_ENDPOINT=server.url, HF_HOME=home, HF_TOKEN=TOKEN)
    assert same(load_vip(REPO), encoder_of(0))


def test_a_gated_repository_says_where_to_ask(server):
    server.access[REPO] = "gated"
    with pytest.raises(
        CheckpointError, match=f"{REPO} is gated on the Hub: ask for access.*HF_TOKEN"
    ):
        load_vip(REPO)


def test_a_missing_revision_is_named(server):
    with pytest.raises(CheckpointError, match=f"{REPO} has no revision 'v9': give a branch"):
        load_vip(REPO, revision="v9")


def test_a_repository_with_a_pickle_alone_is_refused(server):
    for name in ("model.safetensors", "config.json"):
        del server.branches[REPO]["main"][name]
    wanted = "has no model.safetensors and no config.json. Only .* as neither can hold code"
    with pytest.raises(CheckpointError, match=wanted):
        load_vip(REPO)
    assert not any("model.pt" in asked for asked in server.requests)


def test_a_missing_file_is_named(server):
    del server.branches[REPO]["main"]["config.json"]
    with pytest.raises(CheckpointError, match=f"the Hub's {REPO} has no config.json"):
        load_vip(REPO)


def test_a_damaged_file_is_named(server):
    files = server.branches[REPO]["main"]
    files["model.safetensors"] = files["model.safetensors"][:-9]
    with pytest.raises(CheckpointError, match=r"models--someone--vip.*model\.safetensors.*damaged"):
        load_vip(REPO)


@pytest.mark.parametrize("how", ["switched off", "unreachable"])
def test_without_a_connection_it_is_said_what_to_do(tmp_path, monkeypatch, how):
    offline = {"HF_HUB_OFFLINE": "1"} if how == "switched off" else {}
    # Nobody listens at port 9 of this machine.
    start_anew(monkeypatch, HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9", **offline)
    wanted = (
        f"{REPO} does not exist here, and the Hub cannot be reached .*unset HF_HUB_OFFLINE.*"
        f"hf download {REPO} --local-dir vip, and give that folder"
    )
    with pytest.raises(CheckpointError, match=wanted):
        load_vip(REPO)


def test_a_name_that_the_hub_forbids_is_named(server):
    with pytest.raises(CheckpointError, match=r"someone/a\.\.b cannot be used"):
        load_vip("someone/a..b")


def test_without_huggingface_hub_the_install_command_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    wanted = f'{REPO} does not exist here.*pip install "torchrl-vip.hub.".*hf download {REPO}'
    with pytest.raises(CheckpointError, match=wanted):
        load_vip(REPO)
    with pytest.raises(ImportError, match='pip install "torchrl-vip.hub."'):
        save_vip(encoder_of(0), tmp_path / "new", push_to=REPO)
    assert not (tmp_path / "new").exists()


# --- writing -----------------------------------------------------------------------------------------


@pytest.fixture
def writable(server, tmp_path, monkeypatch):
    home = str(tmp_path / "cache")
    start_anew(monkeypatch, HF_ENDPOINT=server.url, HF_HOME=home, HF_TOKEN=TOKEN)
    return server


@pytest.mark.parametrize("private", [None, True])
def test_what_is_pushed_comes_back(writable, tmp_path, private):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (tmp_path / "mine/metrics.csv").write_text("1,2")
    path = save_vip(encoder_of(3), tmp_path / "mine", push_to="me/new", private=private)
    pushed = writable.branches["me/new"]["main"]
    assert set(pushed) == {"model.safetensors", "config.json", "README.md"}
    assert all((path / name).read_bytes() == content for name, content in pushed.items())
    assert writable.access.get("me/new") == ("private" if private else None)
    assert same(load_vip("me/new"), encoder_of(3))


def test_pushing_again_replaces_the_checkpoint_and_keeps_other_files(writable, tmp_path):
    save_vip(encoder_of(4), tmp_path / "mine", push_to=REPO)
    assert same(load_vip(REPO), encoder_of(4))
    assert writable.branches[REPO]["main"]["README.md"] == b"---\n---\n"


def test_without_the_right_to_write_the_folder_stays_and_the_command_is_said(server, tmp_path):
    path = tmp_path / "mine"
    wanted = rf"saved in {path}, but not uploaded: .*HF_TOKEN.*Later: hf upload me/new {path}"
    with pytest.raises(CheckpointError, match=wanted):
        save_vip(encoder_of(3), path, push_to="me/new")
    assert same(load_vip(path), encoder_of(3)) and "me/new" not in server.branches


def test_without_a_connection_the_folder_stays_and_the_command_is_said(tmp_path, monkeypatch):
    start_anew(monkeypatch, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN)
    path = tmp_path / "mine"
    wanted = f"saved in {path}, but not uploaded: .*HF_HUB_OFFLINE.*hf upload me/new {path}"
    with pytest.raises(CheckpointError, match=wanted):
        save_vip(encoder_of(3), path, push_to="me/new")
    assert same(load_vip(path), encoder_of(3))


@pytest.mark.parametrize("name", ["vip", "a/b/c", "./me/vip", "me/model.safetensors", ""])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match=f"push_to='{name}'; wanted a repository of the Hub"):
        save_vip(encoder_of(0), tmp_path / "mine", push_to=name)
    assert not (tmp_path / "mine").exists()


def test_nothing_is_pushed_of_a_checkpoint_that_cannot_be(writable, tmp_path):
    wrong = VIPEncoder("small", dim=5, image_size=32, config={"reward_scale": -1.0})
    with pytest.raises(CheckpointError, match="is not written"):
        save_vip(wrong, tmp_path / "mine", push_to="me/new")
    assert "me/new" not in writable.branches


def test_the_cache_is_huggingface_hubs_own(server, tmp_path):
    load_vip(REPO, revision="better")
    (repo,) = (tmp_path / "cache/hub").glob("models--*")
    commit = (repo / "refs/better").read_text()
    assert repo.name == "models--someone--vip"
    config = json.loads((repo / "snapshots" / commit / "config.json").read_text())
    assert config["backbone"] == "small"
