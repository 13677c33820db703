"""The command torchrl-vip: help, exit codes, no traceback for what a user can mend."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchrl_vip import cli

ROOT = Path(__file__).resolve().parents[1]
# As the installed script does: it is known by its name.
SCRIPT = """
import sys
sys.argv[0] = "/somewhere/bin/torchrl-vip"
from torchrl_vip.cli import main
try:
    code = main()
except SystemExit as leave:
    code = leave.code
heavy = {"torch", "torchrl", "numpy", "matplotlib"} & set(sys.modules)
print("imported", *sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


def run(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        capture_output=True, text=True, env=environment, timeout=600, **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """main writes down which command it has called."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    yield
    cli._called.clear()


@pytest.mark.parametrize(
    "arguments, code",
    [(["--help"], 0), (["--version"], 0), ([], 2), (["labl"], 2), (["weights", "--help"], 0)],
)
def test_help_and_version_import_nothing_heavy(arguments, code):
    ended = run(*arguments)
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1] == "imported"


def test_label_says_its_options_without_torch():
    pytest.importorskip("pyarrow")
    ended = run("label", "--help")
    assert ended.returncode == 0 and "usage: torchrl-vip label" in ended.stdout
    assert "python -m" not in ended.stdout
    assert "torch" not in ended.stderr.split()


def test_the_help_has_each_command_with_an_example(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert leave.value.code == 0
    for name, command in cli.COMMANDS.items():
        assert f"\n  {name} " in said and f"torchrl-vip {command.example}\n" in said
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize("name", [*cli.COMMANDS])
def test_each_command_teaches(name, capsys):
    module = pytest.importorskip(cli.COMMANDS[name].module)
    assert callable(getattr(module, cli.COMMANDS[name].main))
    try:
        code = cli.main([name, "--help"])
    except SystemExit as leave:
        code = leave.code
    said = capsys.readouterr().out
    assert code == 0 and f"torchrl-vip {name}" in said and len(said.splitlines()) > 10


def test_a_command_by_python_m_is_called_so():
    assert cli.program("label") == "python -m torchrl_vip.label"


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["weights", "path", "huge"], 1, "error: no weights named 'huge' come with the package"),
        (["weights", "check", "/nowhere"], 1, "error: /nowhere does not exist: wanted a folder"),
        (["curves", "nowhere.mp4", "--out", "look"], 1, "error: nowhere.mp4"),
        (["label", "nowhere"], 1, "error: nowhere"),
        (["render", "--out", "x", "--size", "3"], 2, "--size 3: mp4 wants an even number"),
        (["weights", "inspect", "x"], 2, "invalid choice: 'inspect'"),
        (["curves", "x.mp4"], 2, "the following arguments are required: --out"),
        (["curve", "x.mp4"], 2, "there is no command 'curve': did you mean curves?"),
        (["x"], 2, "there is no command 'x': wanted one of curves, demo, label"),
    ],
)
def test_a_mistake_is_a_line_and_an_exit_code(
    arguments, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    try:
        found = cli.main(arguments)
    except SystemExit as leave:
        found = leave.code
    assert found == code
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("field", ["nonsense=1", "preset=nonsense"])
def test_pretrain_reads_the_rest_of_the_line(field, tmp_path):
    pytest.importorskip("hydra")
    ended = run("pretrain", "data.path=x", f"out_dir={tmp_path / 'run'}", field, cwd=tmp_path)
    said = ended.stderr.splitlines()
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert any("nonsense" in line for line in said)
    assert list(tmp_path.iterdir()) == []


def _command(monkeypatch, main):
    """``torchrl-vip weights`` is this function instead."""
    from torchrl_vip import weights_command

    monkeypatch.setattr(weights_command, "main", main)


def test_the_exit_code_is_the_command_s(monkeypatch):
    _command(monkeypatch, lambda rest: 3 if rest == ["--out", "x"] else 9)
    assert cli.main(["weights", "--out", "x"]) == 3
    assert sys.argv == ["torchrl-vip", "weights", "--out", "x"]  # as label writes it in its report
    _command(monkeypatch, lambda rest: None)
    assert cli.main(["weights"]) == 0


def test_ctrl_c_is_130_and_a_bug_keeps_its_traceback(monkeypatch, capsys):
    def stopped(_):
        raise KeyboardInterrupt

    def broken(_):
        raise KeyError("bug")

    _command(monkeypatch, stopped)
    assert cli.main(["weights"]) == 130
    assert capsys.readouterr().err == "\ninterrupted.\n"
    _command(monkeypatch, broken)
    with pytest.raises(KeyError, match="bug"):
        cli.main(["weights"])


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch, capsys):
    command = cli.COMMANDS["weights"]._replace(module="not_there", extra="page")
    monkeypatch.setitem(cli.COMMANDS, "weights", command)
    assert cli.main(["weights"]) == 1
    assert capsys.readouterr().err == (
        "error: torchrl-vip weights needs not_there, which is not installed: "
        'pip install "torchrl-vip[page]"\n'
    )


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    line = f"{sys.executable} -c '{SCRIPT}' weights list | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    ended = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
    assert "Traceback" not in ended.stderr and "error" not in ended.stderr


# -- weights ----------------------------------------------------------------------------------------


def test_weights_are_listed_with_licence_and_size(capsys):
    assert cli.main(["weights", "list"]) == 0
    said = capsys.readouterr().out
    for words in ("efficientnet_lite0 (bundled)\n", "tiny\n", "11 MB", "MIT", "CC BY-NC 4.0"):
        assert words in said


def test_weights_check_says_what_a_checkpoint_is_and_lacks(tmp_path, capsys):
    from torchrl_vip import VIPEncoder, load_vip, save_vip

    assert cli.main(["weights", "path", "tiny"]) == 0
    folder = capsys.readouterr().out.strip()
    assert load_vip(folder).image_size == 112
    save_vip(VIPEncoder("tiny", dim=8), tmp_path / "mine")
    assert cli.main(["weights", "check", str(tmp_path / "mine")]) == 0
    said = capsys.readouterr().out
    assert "8 numbers a frame" in said and 'missing: scale="auto" needs it' in said
    assert "not said: ask who made it" in said


def test_weights_download_goes_where_it_is_told(tmp_path, monkeypatch, capsys):
    from torchrl_vip import weights

    monkeypatch.setattr(weights, "OFFICIAL_URL", (tmp_path / "gone").as_uri())
    assert cli.main(["weights", "download", "--out", str(tmp_path)]) == 1
    assert "could not download the official VIP weights" in capsys.readouterr().err
    (tmp_path / "vip_resnet50.pt").write_bytes(b"there")
    assert cli.main(["weights", "download", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert f'load_vip("{tmp_path / "vip_resnet50.pt"}")' in said.out and "CC BY-NC" in said.err


# -- completion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_a_shell_is_told_commands_options_and_values(shell, capsys):
    pytest.importorskip("shtab")
    assert cli.main(["completion", shell]) == 0
    said = capsys.readouterr().out
    for word in ("curves", "weights", "success-threshold", "potential", "download"):
        assert word in said
    if shell == "bash":
        code = f"{said}\nCOMP_WORDS=(torchrl-vip lab); COMP_CWORD=1; _shtab_torchrl_vip; echo $COMPREPLY"
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "label"


def test_completion_without_shtab_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 1
    assert 'pip install "torchrl-vip[cli]"' in capsys.readouterr().err
