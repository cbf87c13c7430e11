"""Workers: who evaluates a plan, whether that process still lives, its pulse and its patience.

A worker is named `host:pid:start`, where `start` is made of the machine's boot, the process
namespace and the start of the process, so that no later process and no other machine or container
of the same host name is taken for it. Whether a worker of another machine is alive cannot be told,
only that its lease ran out; a worker of this one that has died is known at once.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from circuitsearch.core.errors import StorageError

__all__ = ["heartbeat", "is_dead", "patiently", "worker_name"]

_Answer = TypeVar("_Answer")

_runs = itertools.count()
_alive: set[str] = set()  # runs of this process that go on
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_alive.clear)


@contextmanager
def worker_name(given: str | None = None) -> Iterator[str]:
    """Name the worker that runs inside the block, and know it as alive until its end.

    Args:
        given: another name, e.g. of a batch job. It must be unique among all workers of the
            study at any time; a worker that is started again under it gets its plan back at once.
    """
    name = given or f"{socket.gethostname()}:{os.getpid()}:{_start(os.getpid())}.{next(_runs)}"
    _alive.add(name)
    try:
        yield name
    finally:
        _alive.discard(name)


def is_dead(name: str) -> bool:
    """Whether a worker is known to have ended: its process on this machine, or its run in ours."""
    if name in _alive:
        return False
    parts = name.rsplit(":", 2)
    if len(parts) != 3 or not parts[1].isdigit() or parts[0] != socket.gethostname():
        return False
    start, dot, _run = parts[2].rpartition(".")
    place = _place()
    if not dot or not start.startswith(f"{place}-"):
        return False  # another machine, container or boot under this host name
    pid = int(parts[1])
    if pid == os.getpid():
        return True  # that run has ended, since it is not among those alive
    found = _start(pid)
    return found != start if found is not None else not _hidden(pid)


def _hidden(pid: int) -> bool:
    """Whether there is a process of another user that /proc does not show (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False  # ours, and /proc shows ours: it has ended and nobody has waited for it


@contextmanager
def heartbeat(beat: Callable[[], bool], lease: float) -> Iterator[None]:
    """Call `beat` every third of the lease, on a thread of its own, while the block runs.

    Args:
        beat: extends the lease; returns False when there is nothing left to extend.
        lease: its length in seconds.
    """
    over = threading.Event()

    def pulse() -> None:
        while not over.wait(lease / 3):
            try:
                if not beat():
                    return
            except StorageError:
                # The database may be back at the next beat. If not, the lease runs out, and what
                # is measured here still counts unless another worker is faster.
                continue

    thread = threading.Thread(target=pulse, name="circuitsearch heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def patiently(step: Callable[[], _Answer], seconds: float) -> _Answer:
    """Take a step that is safe to repeat; while the database fails, again until time is up.

    A training of hours must not be lost to a database that is restarted.
    """
    end = time.monotonic() + seconds
    pause = 0.05
    while True:
        try:
            return step()
        except StorageError:
            if time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


@cache
def _place() -> str:
    """Return what tells this machine and process namespace from others of the same name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # not Linux: the host name has to do
        return "0"
    return f"{boot}.{space}"


def _start(pid: int) -> str | None:
    """Return what no other process of that number has in common with it; None when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_elsewhere(pid)
    # The name, in brackets, may hold anything. Behind it: state, ..., start in ticks since boot.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else f"{_place()}-{fields[19]}"


def _start_elsewhere(pid: int) -> str | None:
    """Return the same where there is no /proc, as on macOS."""
    try:
        done = subprocess.run(
            ["ps", "-o", "lstart=", "-p", str(pid)],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return f"{_place()}-unknown"
    started = "".join(filter(str.isalnum, done.stdout))
    return f"{_place()}-{started}" if started else None
