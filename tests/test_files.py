import os
import signal
import socket

import pytest

from gw_detectron.errors import UsageError
from gw_detectron.files import locked, make_folder, remove_unfinished, whole_file

from .locks import lock_held


def test_another_process_is_named_and_kept_out(tmp_path):
    with lock_held(tmp_path) as holder, pytest.raises(UsageError) as error:
        locked(str(tmp_path), "OUTPUT_DIR").__enter__()
    assert str(error.value) == (
        f"OUTPUT_DIR {tmp_path} is in use by process {holder.pid} on {socket.gethostname()}: "
        "let it end, or choose another OUTPUT_DIR"
    )


def test_a_killed_process_holds_nothing_though_its_child_lives(tmp_path):
    with lock_held(tmp_path) as holder:
        holder.kill()
        holder.join()
        with locked(str(tmp_path), "OUTPUT_DIR"):
            assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_what_cannot_be_written_to_is_one_line(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UsageError, match="^--output .* can't be written to: Is a directory$"):
        locked(str(tmp_path), "--output").__enter__()


def test_it_ends_with_the_block(tmp_path):
    for _ in range(2):
        with locked(str(tmp_path), "OUTPUT_DIR"):
            pass
    with lock_held(tmp_path):
        pass


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def lockf(*args):
        raise OSError(37, "No locks available")

    with lock_held(tmp_path):
        monkeypatch.setattr("fcntl.lockf", lockf)
        with locked(str(tmp_path), "OUTPUT_DIR"):
            pass


def test_a_file_has_its_old_content_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "results.txt"
    path.write_text("old")
    with whole_file(path) as file:
        file.write("néw")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "néw"
    with pytest.raises(KeyboardInterrupt), whole_file(path, "wb") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text(encoding="utf-8") == "néw"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_leaves_is_removed(tmp_path):
    path = tmp_path / "weights[1].pth"
    pid = os.fork()
    if pid == 0:
        with whole_file(path, "wb") as file:
            file.write(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    remove_unfinished(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named_as_the_user_names_it(tmp_path):
    make_folder(str(tmp_path / "a" / "b"), "--output")
    make_folder(str(tmp_path / "a" / "b"), "--output")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="^--output .*file: File exists$"):
        make_folder(str(tmp_path / "file"), "--output")
