"""Workers: names, whether they live, and their heartbeat."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
from pathlib import Path

import pytest

from circuitsearch.core.errors import StorageError
from circuitsearch.search.storage import workers
from circuitsearch.search.storage.workers import heartbeat, is_dead, worker_name


def test_a_name_says_host_and_process_and_is_unique() -> None:
    with worker_name() as first, worker_name() as second:
        assert first.startswith(f"{socket.gethostname()}:{os.getpid()}:")
        assert first != second
        assert not is_dead(first)
        assert not is_dead(second)
    assert is_dead(first)
    assert is_dead(second)
    with worker_name("job-7") as given:
        assert given == "job-7"


def test_only_what_surely_died_is_dead() -> None:
    with worker_name() as name:
        host, pid, start = name.rsplit(":", 2)
    process = os.getppid()
    living = workers._start(process)
    assert living is not None
    assert not is_dead(f"{host}:{process}:{living}.0")
    place, dash, tick = living.rpartition("-")
    # The number was given to another process since.
    assert is_dead(f"{host}:{process}:{place}{dash}{int(tick) + 1}.0")
    assert is_dead(f"{host}:{2**22 + 1}:{living}.0")
    for unknown in (
        f"other-{host}:{pid}:{start}",  # another machine
        f"{host}:{2**22 + 1}:00000000.1-5.0",  # another machine or container of this name
        "job-7",
        "",
        f"{host}:x:{start}",
    ):
        assert not is_dead(unknown)


def test_a_process_that_proc_hides_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(pid: int, number: int) -> None:
        raise PermissionError if pid == hidden else ProcessLookupError

    with worker_name() as name:
        host, _, start = name.rsplit(":", 2)
    hidden = os.getppid()
    monkeypatch.setattr(workers, "_start", lambda pid: None)
    monkeypatch.setattr(os, "kill", kill)
    assert not is_dead(f"{host}:{hidden}:{start}")
    assert is_dead(f"{host}:{hidden + 1}:{start}")


def test_a_process_that_nobody_has_waited_for_is_dead() -> None:
    child = multiprocessing.get_context("spawn").Process(target=os.getpid)
    child.start()
    start = workers._start(child.pid or 0)
    assert start is not None
    # Wait for its end without collecting it: it stays as a zombie.
    os.waitid(os.P_PID, child.pid or 0, os.WEXITED | os.WNOWAIT)
    assert is_dead(f"{socket.gethostname()}:{child.pid}:{start}.0")
    child.join()


def test_without_proc_the_command_ps_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    first = workers._start_elsewhere(os.getpid())
    assert first is not None
    assert first == workers._start_elsewhere(os.getpid())
    assert workers._start_elsewhere(2**22 + 1) is None
    monkeypatch.setenv("PATH", str(Path("/nowhere")))
    unknown = workers._start_elsewhere(os.getpid())
    assert unknown is not None
    assert unknown.endswith("-unknown")


def test_the_heart_beats_until_the_end_and_survives_the_database() -> None:
    beats: list[int] = []
    enough = threading.Event()

    def beat() -> bool:
        beats.append(1)
        if len(beats) == 2:
            raise StorageError("gone for a moment")
        if len(beats) == 4:
            enough.set()
        return True

    with heartbeat(beat, 0.03):
        assert enough.wait(10)
    assert "circuitsearch heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_a_lost_claim_needs_no_heartbeat() -> None:
    lost = threading.Event()

    def beat() -> bool:
        assert not lost.is_set()
        lost.set()
        return False

    with heartbeat(beat, 0.03):
        assert lost.wait(10)
        ended = threading.Event()
        assert not ended.wait(0.1)  # ten more beats, had it gone on
