"""A search's folder: stage results kept under the key of their inputs.

A stage whose inputs hash to the key on file is not run again; one whose inputs changed is. A
result file is written whole or not at all, so a search killed at any moment goes on at the stage it
was in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from circuitsearch.config import SearchConfig
from circuitsearch.configfile import dump_config, load_config
from circuitsearch.core.errors import ConfigError, DataError, StorageError
from circuitsearch.core.files import content_hash, read_json, write_json, write_text
from circuitsearch.processes import ALONE, Processes
from circuitsearch.progress import Reporter

__all__ = ["CONFIG_FILE", "Workspace", "config_in"]

CONFIG_FILE = "search.yaml"
"""The resolved configuration inside a search's folder."""


def config_in(folder: Path) -> Path:
    """Return the resolved configuration in a search's output folder.

    Raises:
        ConfigError: If there is none, or it is that of a search in another place (the folder was
            moved or copied, or its name is relative to another working folder): going on there
            would be another search.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        raise ConfigError(
            f"{folder}: no {CONFIG_FILE} there; give the output folder of a search that was run, a "
            "search file or, to read a study, its database"
        )
    output = load_config(path).output
    if output.resolve() != folder.resolve():
        raise ConfigError(
            f"{folder}: {path} says output: {output}, from here {output.resolve()}; run the "
            f"command where the search was run or, if it was moved, set output: {folder} there"
        )
    return path


@dataclass(frozen=True)
class Workspace:
    """One search on disk.

    Attributes:
        config: The resolved configuration.
        say: Where progress goes.
        processes: Those that work on it together; the main one locks the folder for all.
    """

    config: SearchConfig
    say: Reporter
    processes: Processes = ALONE

    @property
    def folder(self) -> Path:
        """Folder of the search."""
        return self.config.output

    def claim(self) -> FileLock:
        """Keep every other process from running this search; hold on to what is returned.

        The lock goes with the process, however it ends.

        Raises:
            StorageError: If another process runs the search now, or the folder cannot be made.
        """
        lock = FileLock(self.folder / ".lock")
        self.processes.on_main(lambda: self._lock(lock))
        return lock

    def _lock(self, lock: FileLock) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise StorageError(
                f"{self.folder}: another process runs this search; wait for it or stop it"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be used as output folder ({error.strerror or error}); "
                "choose another one"
            ) from error

    def kept(
        self, name: str, key: Any, compute: Callable[[], Any], folder: Path | None = None
    ) -> Any:
        """Return a stage's JSON result, from file when the inputs are unchanged.

        Args:
            name: File name without suffix.
            key: Everything the result depends on, as JSON.
            compute: Makes the result (JSON).
            folder: Where the file lies; default the work folder, of what can be made again.
        """
        path = (folder or self.config.work) / f"{name}.json"
        stored = _stored(path, key)
        if stored is not None:
            return stored["result"]
        write_json(path, {"key": content_hash(key), "result": compute()})
        # read back, so that a first run and a resumed one see the same types and the same order
        return read_json(path)["result"]

    def found(self, name: str, key: Any) -> Any:
        """Return what `kept` has on file under this key; None when it would compute."""
        stored = _stored(self.config.work / f"{name}.json", key)
        return None if stored is None else stored["result"]

    def write_config(self, *, beside: bool = False) -> None:
        """Write the resolved configuration into the folder, unless another search lives there.

        A study that has begun keeps its configuration until it accepts this one
        (`accept_config`): should it refuse, `resume` still goes on with what it is about.

        Args:
            beside: Whether what is done stands beside the search (one plan distilled, a checkpoint
                measured): the search's own configuration, where there is one, then stays as it is,
                so that `resume` goes on with the same search.

        Raises:
            ConfigError: If the folder belongs to a search of another name.
            StorageError: If the study's database fails.
        """
        self.processes.on_main(lambda: self._write_config(beside))

    def accept_config(self) -> None:
        """Write the configuration that the study goes on with."""
        self.processes.on_main(self._store_config)

    def _store_config(self) -> None:
        path = self.folder / CONFIG_FILE
        header = (
            f"# circuitsearch run {path}\n# resolved configuration, every default spelled out\n"
        )
        told = self.config
        if told.search.storage is not None:
            # imported here: most commands that write a configuration need no database
            from circuitsearch.search.storage.connection import without_password

            # the folder is evidence, to be shown and shared
            safe = told.search.model_copy(update={"storage": without_password(told.search.storage)})
            told = told.model_copy(update={"search": safe})
        write_text(path, header + dump_config(told))

    def _write_config(self, beside: bool) -> None:
        path = self.folder / CONFIG_FILE
        if path.exists():
            there = load_config(path)
            if there.name != self.config.name:
                raise ConfigError(
                    f"output: {self.folder} holds the search {there.name!r}, this one is "
                    f"{self.config.name!r}; choose another output folder or remove that one"
                )
            if beside or there == self.config or self._has_study():
                return
        self._store_config()

    def _has_study(self) -> bool:
        # imported here: most commands that write a configuration need no database
        from circuitsearch.search.storage.connection import close_storage, is_there, open_storage
        from circuitsearch.search.storage.transactions import find_study

        if not is_there(self.config.database):
            return False
        storage = open_storage(self.config.database)
        try:
            return find_study(storage, self.config.name) is not None
        finally:
            close_storage(storage)


def _stored(path: Path, key: Any) -> dict[str, Any] | None:
    """Return what `Workspace.kept` wrote under this key."""
    if not path.exists():
        return None
    try:
        stored = read_json(path)
    except DataError:
        return None  # a damaged file is an unfinished stage: run it again
    fits = isinstance(stored, dict) and stored.get("key") == content_hash(key)
    return stored if fits else None
