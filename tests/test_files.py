"""write_whole: a file is the old one or the new one, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import time

import pytest

from torchrl_vip.files import LEFTOVER_AGE, NewFolder, check_space, restore_folder, write_whole


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


# --- folders --------------------------------------------------------------------------------------


def test_a_new_folder_appears_at_the_end_or_not_at_all(tmp_path):
    with NewFolder(tmp_path / "a") as folder:
        (folder.part / "one").write_text("1")
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["one"]
    with pytest.raises(FileExistsError, match="not empty"):
        NewFolder(tmp_path / "a")
    with pytest.raises(KeyError), NewFolder(tmp_path / "b"):
        raise KeyError
    assert names(tmp_path) == ["a"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/old").touch()
    with pytest.raises(KeyError), NewFolder(tmp_path / "a", replace=True):
        raise KeyError
    assert names(tmp_path / "a") == ["old"]
    with NewFolder(tmp_path / "a", replace=True) as folder:
        (folder.part / "new").touch()
    assert names(tmp_path / "a") == ["new"] and names(tmp_path) == ["a"]


def test_a_folder_that_was_left_between_two_renames_comes_back(tmp_path):
    (tmp_path / ".a.01234567.old").mkdir()
    (tmp_path / ".a.01234567.old/mine").touch()
    restore_folder(tmp_path / "a")
    assert names(tmp_path / "a") == ["mine"] and names(tmp_path) == ["a"]
    (tmp_path / ".a.01234567.old").mkdir()  # left after both
    NewFolder(tmp_path / "a", replace=True).discard()
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["mine"]


def test_too_little_room_names_both_numbers(tmp_path):
    check_space(tmp_path, 1)
    with pytest.raises(OSError, match=r"1,000,000,000,000,000,000 bytes are needed at .* are free"):
        check_space(tmp_path, 10**18)
