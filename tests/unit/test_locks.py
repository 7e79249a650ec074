"""Two processes and one output: the second is told who the first is; what a killed one left is taken over."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from medsegdiff_cli import locks
from medsegdiff_cli.errors import ResourceError, UsageError
from medsegdiff_cli.locks import locked
from medsegdiff_cli.paths import LOCK

# Python 3.12 warns of forks when other threads are about; the children here do next to nothing.
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


@pytest.fixture
def file(tmp_path):
    return tmp_path / "output" / LOCK


@pytest.fixture
def other(file):
    """Return a function that forks a process which holds the lock, and returns its number."""
    running = []

    def start(shards: int = 1) -> int:
        ready, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                with locked(file, shards=shards):
                    os.write(said, b"!")
                    time.sleep(600)
            finally:
                os._exit(99)
        running.append(pid)
        os.close(said)
        assert os.read(ready, 1) == b"!"
        os.close(ready)
        return pid

    yield start
    for pid in running:
        with suppress(ProcessLookupError, ChildProcessError):
            kill(pid)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
    os.waitpid(pid, 0)


def hold(file, **settings):
    with locked(file, **settings):
        pass


@pytest.mark.fault("F55")
def test_a_second_process_is_refused_and_told_who_the_first_is(file, other):
    pid = other()
    with pytest.raises(UsageError) as refused:
        hold(file)
    assert refused.value.exit_code == 2
    assert f"process {pid} on {socket.gethostname()} is writing here since 20" in refused.value.what
    assert str(file) in str(refused.value.where)
    assert file.is_file(), "the first one's"


@pytest.mark.fault("F56")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_taken_over_and_that_is_said(file, other, caplog, number):
    pid = other()
    kill(pid, number)
    assert file.is_file()
    with caplog.at_level(logging.INFO):
        hold(file)
    assert f"taking over the lock of process {pid} on {socket.gethostname()}" in caplog.text
    assert not file.parent.exists() or list(file.parent.iterdir()) == []


@pytest.mark.fault("F56")
@pytest.mark.parametrize("content", ["", "{}", "[1]", "no json", '{"pid": "x", "host": 1, "since": 2, "shards": 3}'])
def test_a_file_that_nobody_holds_is_no_lock_whatever_it_says(file, content):
    file.parent.mkdir()
    file.write_text(content)
    hold(file)
    assert not file.exists()


@pytest.mark.parametrize("failure", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_the_file_is_gone_afterwards_and_so_is_a_folder_without_content(file, failure):
    try:
        with locked(file):
            assert json.loads(file.read_text())["pid"] == os.getpid()
            if failure is not None:
                raise failure
    except (ValueError, KeyboardInterrupt, SystemExit):
        pass
    assert not file.parent.exists()
    with locked(file):
        (file.parent / "result").touch()
    assert [path.name for path in file.parent.iterdir()] == ["result"]


def test_the_same_process_has_to_ask_twice_too(file):
    with locked(file), pytest.raises(UsageError):
        hold(file)
    hold(file)


def test_waiting_ends_with_the_other_process(file, other, caplog):
    pid = other()

    def end_it_once_it_is_waited_for():
        for _ in range(600):
            if "waiting for process" in caplog.text:
                break
            time.sleep(0.1)
        kill(pid)

    end = threading.Thread(target=end_it_once_it_is_waited_for)
    with caplog.at_level(logging.INFO):
        end.start()
        hold(file, wait=True)
    assert caplog.text.count(f"waiting for process {pid}") == 1
    end.join()


def test_shards_of_the_same_number_share_and_others_do_not(file, other):
    other(shards=3)
    with locked(file, shards=3):
        with pytest.raises(UsageError):
            hold(file, shards=2)
        with pytest.raises(UsageError):
            hold(file)
    assert file.exists(), "the other shard still holds it"


def test_a_shard_waits_for_nobody_who_is_gone(file, other):
    first = other(shards=2)
    with locked(file, shards=2):
        kill(first)
    hold(file)
    assert not file.exists()


def test_a_lock_whose_file_was_removed_meanwhile_is_asked_for_again(file, monkeypatch):
    """The holder removes the file when it is done; who had it open by then would hold what nobody sees."""
    removed = []
    flock = fcntl.flock

    def remove_first(descriptor: int, kind: int) -> None:
        if not removed:
            removed.append(file.unlink())
        flock(descriptor, kind)

    monkeypatch.setattr(locks.fcntl, "flock", remove_first)
    with locked(file):
        assert file.is_file()
        with pytest.raises(UsageError):
            hold(file)


def test_a_file_system_without_locks_is_said_and_used(file, monkeypatch, caplog):
    def fail(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with locked(file):
        assert "has no locks" in caplog.text
    assert caplog.text.count("has no locks") == 1


@pytest.mark.fault("F47")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_a_resource_error(file, monkeypatch, number):
    def fail(path: Path, *_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.os, "open", fail)
    with pytest.raises(ResourceError) as error:
        hold(file)
    assert error.value.exit_code == 4
    assert error.value.where == str(file.parent)


@pytest.mark.fault("F55")
def test_only_one_of_many_gets_a_lock_that_a_killed_process_left(file):
    """All see the same file of a process that is gone, at the same time."""
    file.parent.mkdir()
    file.write_text('{"pid": 1, "host": "gone", "since": "2000-01-01", "shards": 1}')
    inside, start = file.parent / "inside", time.time() + 0.3
    children = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                time.sleep(max(0.0, start - time.time()))
                with locked(file):
                    inside.touch(exist_ok=False)
                    time.sleep(0.05)
                    inside.unlink()
                code = 0
            except UsageError:
                code = 2
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert set(codes) <= {0, 2}
    assert 0 in codes
