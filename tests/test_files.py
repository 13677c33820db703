"""write_whole: a file is the old one or the new one, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import time

import pytest

from torchrl_vip.files import LEFTOVER_AGE, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    assert write_whole(path, lambda part: part.write_text("new")) == path
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


def test_a_writer_that_raises_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part):
        part.write_text("half")
        raise KeyError("no")

    with pytest.raises(KeyError):
        write_whole(path, write)
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_full_disk_names_the_path_and_the_room(tmp_path):
    def write(part):
        part.write_bytes(bytes(2_000_000))
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"a\.bin could not be written \(No space.*2\.0 MB; .* free"):
        write_whole(tmp_path / "a.bin", write)
    assert names(tmp_path) == []


def test_the_file_has_the_users_own_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    path = write_whole(tmp_path / "a", lambda part: part.write_text(""))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    path = tmp_path / "odd [name]*.bin"
    path.write_text("old")
    script = (
        "import sys, time\n"
        "from torchrl_vip.files import write_whole\n"
        "def write(part):\n"
        "    part.write_bytes(bytes(1000)); print('writing', flush=True); time.sleep(600)\n"
        "write_whole(sys.argv[1], write)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"writing\n"
    (part,) = (one for one in tmp_path.iterdir() if one != path)
    old = time.time() - 2 * LEFTOVER_AGE
    os.utime(part, (old, old))
    write_whole(path, lambda part: part.write_text("while another writes"))
    assert part.exists()  # it is still being written
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "while another writes"
    write_whole(path, lambda part: part.write_text("new"))
    assert path.read_text() == "new" and names(tmp_path) == [path.name]
