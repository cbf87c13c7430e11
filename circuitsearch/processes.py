"""One job on several processes: who is who, failures that end all of them, sums over them.

A launcher (`accelerate launch`, `torchrun`) starts the same command several times and says in the
environment which process each is. All run the same code in step; three rules keep it simple:

* What writes files is done by the *main* process, number 0; the others then read (`main_first`), or
  wait for the result (`on_main`). Meanwhile each works as if it were alone, so whatever happens
  inside, a training included, needs to know nothing of the others.
* Every meeting (`gather`) also tells who failed, and then raises on all. A process that fails
  between two meetings says so where the others wait for it, at its outermost `together`.
* Only the main process talks; the others say what happened to them through it.

Losses and failures meet through gloo, on the CPU; gradients add up where they are, through NCCL on
GPUs. A single process is alone from the start: nothing here does anything then, and neither
accelerate nor torch.distributed is imported.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from circuitsearch.core.errors import CircuitSearchError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "Processes", "here"]

T = TypeVar("T")

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What launchers set; a cluster that sets some of them has not started this process itself."""
_PATIENCE = timedelta(days=1)
"""How long a process waits for the main one, which may be encoding many pages. A process that died
is noticed at once: its connections close."""


class Processes:
    """The processes of one job, seen from one of them.

    Attributes:
        is_main: Whether this process is the one that writes and talks.
    """

    def __init__(self, index: int = 0, count: int = 1, local: int = 0) -> None:
        """Describe the processes; they meet when they first have to.

        Args:
            index: Number of this process, from 0.
            count: Number of processes.
            local: Number of this process among those of its machine, which decides its GPU.
        """
        self._index, self._size, self._local = index, count, local
        self._apart = False
        self._known: BaseException | None = None  # the failure that all have been told of
        self.is_main = index == 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Processes:
        """Return what a launcher says in the environment; one process where it says nothing."""
        texts = [environment.get(name, "") for name in _NAMES]
        if not all(text.isdecimal() for text in texts):
            return cls()
        index, count, local = map(int, texts)
        return cls(index, count, local) if count > 1 else cls()

    @property
    def count(self) -> int:
        """Number of processes that work together now; 1 while this one works as if alone."""
        return 1 if self._apart else self._size

    def refuse(self, what: str) -> None:
        """Refuse to run something on several processes.

        Raises:
            ConfigError: If there are several.
        """
        if self._size > 1:
            raise ConfigError(
                f"{what}: started as {self._size} processes (WORLD_SIZE in the environment), "
                "allowed is 1; only distill trains on several. Start it without accelerate launch "
                "or torchrun; several processes share a search by `circuitsearch worker`"
            )

    def device(self, asked: str) -> str:
        """Return the device of this process.

        Args:
            asked: A torch device, or `auto`: CUDA where there is one, else the CPU.

        Raises:
            ConfigError: If several processes would share one GPU.
        """
        import torch

        if asked == "auto":
            asked = "cuda" if torch.cuda.is_available() else "cpu"
        if self._size == 1 or asked == "cpu":
            return asked
        if asked != "cuda":
            raise ConfigError(
                f"device: got {asked!r} for {self._size} processes, allowed are auto, cuda and "
                "cpu; each process takes a GPU of its own"
            )
        if self._local >= torch.cuda.device_count():
            raise ConfigError(
                f"device: process {self._local + 1} of this machine has no GPU of its own, there "
                f"are {torch.cuda.device_count()}; start fewer processes, or set device to cpu"
            )
        return f"cuda:{self._local}"

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process: as many as the others have, give or take one.

        The parts follow each other in order; some are empty where there are too few items.
        """
        index = 0 if self._apart else self._index
        first, last = (len(items) * place // self.count for place in (index, index + 1))
        return items[first:last]

    def gather(self, compute: Callable[[], T]) -> list[T]:
        """Compute something on every process and return all results, in order of their numbers.

        Results are pickled on their way.

        Raises:
            CircuitSearchError: What this process raised, else what the first that failed raised;
                also if another process ended without a word.
        """
        if self.count == 1:
            return [compute()]
        try:
            value = compute()
        except Exception as error:
            if error is not self._known:
                # should the others be gone, what happened here is still the news
                with contextlib.suppress(CircuitSearchError):
                    self._meet((None, _Failure.of(error, f"process {self._index}")))
                self._known = error
            raise
        met = self._meet((value, None))
        failures = [failure for _, failure in met if failure is not None]
        if failures:
            self._known = failures[0].error()
            raise self._known
        return [value for value, _ in met]

    def together(self, compute: Callable[[], T]) -> T:
        """Compute something on every process; return what this one has, or fail with the others.

        Raises:
            CircuitSearchError: As `gather`.
        """
        kept: list[T] = []
        self.gather(lambda: kept.append(compute()))
        return kept[0]

    def on_main(self, compute: Callable[[], T]) -> T:
        """Compute something on the main process alone and return its result on all.

        Raises:
            CircuitSearchError: As `gather`.
        """

        def computed() -> T | None:
            if not self.is_main:
                return None
            with self._working_apart():
                return compute()

        if self.count == 1:
            return compute()
        made: Any = self.gather(computed)[0]
        result: T = made
        return result

    def main_first(self, compute: Callable[[], T]) -> T:
        """Compute something that is kept on disk: the main process does, then the others read.

        Raises:
            CircuitSearchError: As `gather`.
        """
        if self.count == 1:
            return compute()
        kept: list[T] = []
        self.on_main(lambda: kept.append(compute()))

        def read() -> T:
            with self._working_apart():
                return kept[0] if kept else compute()

        return self.together(read)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the processes, in one bucket.

        Args:
            tensors: Of one type and device, of the same shapes on every process.
        """
        if self.count == 1 or not tensors:
            return
        import torch

        control = _control()
        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            group = control if flat.device.type == "cpu" else None  # None: the default one, NCCL
            torch.distributed.all_reduce(flat, group=group)
            pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))

    @contextlib.contextmanager
    def _working_apart(self) -> Iterator[None]:
        """Let this process work as if it were alone."""
        before, self._apart = self._apart, True
        try:
            yield
        finally:
            self._apart = before

    def _meet(self, said: tuple[T, _Failure | None]) -> list[tuple[T, _Failure | None]]:
        """Tell all processes something and return what each has told."""
        import torch.distributed

        heard: list[Any] = [None] * self._size
        try:
            torch.distributed.all_gather_object(heard, said, group=_control())
        except CircuitSearchError as error:
            self._known = error
            raise
        except RuntimeError as error:
            self._known = CircuitSearchError(
                f"Processes: one of {self._size} ended without a word, or cannot be reached "
                f"({_first_line(error)}); look at what the launcher says, then start again: a "
                "training goes on where it was saved"
            )
            raise self._known from error
        return heard


@dataclass(frozen=True)
class _Failure:
    """What one process tells the others of an exception."""

    kind: type[CircuitSearchError]
    text: str

    @classmethod
    def of(cls, error: Exception, who: str) -> _Failure:
        if isinstance(error, CircuitSearchError):
            return cls(type(error), str(error))
        return cls(CircuitSearchError, f"{who}: {type(error).__name__}: {error}")

    def error(self) -> CircuitSearchError:
        return self.kind(self.text)


@functools.cache
def _control() -> Any:
    """Let the processes find each other, once; return the gloo group of all of them.

    The default group is that of the hardware: NCCL where there are GPUs.

    Raises:
        CircuitSearchError: If they do not find each other.
    """
    import torch
    from accelerate import PartialState

    try:
        # each process takes its GPU; the rendezvous is that of MASTER_ADDR and MASTER_PORT
        PartialState(cpu=not torch.cuda.is_available())
        group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise CircuitSearchError(
            f"Processes: they do not find each other ({_first_line(error)}); start them by "
            "accelerate launch or torchrun, with an address and a port that all can reach"
        ) from error
    atexit.register(_leave)
    return group


def _leave() -> None:
    """Close the connections, where others are left to close them with."""
    import torch.distributed

    # A group that is still known somewhere keeps its threads. One of them may yet hold the tensors
    # of the last meeting, and to let go of these without an interpreter aborts the process.
    _control.cache_clear()
    with contextlib.suppress(RuntimeError, ValueError):
        torch.distributed.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


ALONE = Processes()
"""One process."""


@functools.cache
def here() -> Processes:
    """Return the processes that the environment of this one tells of."""
    return Processes.of(os.environ)
