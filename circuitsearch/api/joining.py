"""Working on a study that another process has opened: what `circuitsearch worker` does."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

__all__ = ["join_study"]


def join_study(
    storage: str | Path,
    study: str | None = None,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> str:
    """Work on a study until its budget is spent, by the configuration that is stored with it.

    Any number of processes and machines may; every plan is trained once (docs/guides/workers.md).

    Args:
        storage: SQLite file or database URL.
        study: Name, where the database holds several.
        output: Folder for this worker's own files; default beside the search's, named after this
            machine and process.
        overrides: `key.sub=value` texts, e.g. where the data are on this machine.
        quiet: Whether to say nothing on standard error.

    Returns:
        Why it ended, in words.

    Raises:
        ConfigError: If there is no such study, or several and none is named; if it holds no
            configuration; if versions, teacher or data differ here (each difference is named).
        DataError: If pages cannot be read.
        StorageError: If there is no such database, or it fails; if the folder is in use.
        TrainingError: If too many trainings have failed.
    """
    import optuna

    from circuitsearch import stages
    from circuitsearch.configfile import check_config
    from circuitsearch.core.errors import ConfigError
    from circuitsearch.pipeline import Pipeline
    from circuitsearch.progress import reporter
    from circuitsearch.search.study import Study
    from circuitsearch.studies import open_database, study_named
    from circuitsearch.workspace import Workspace

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with open_database(str(storage)) as (opened, only):
        name = study_named(opened, study or only)
        joined = Study.attach(opened, name, stages.versions())
        if joined.config is None:
            raise ConfigError(
                f"Study {name!r} holds no configuration for workers; open it with circuitsearch run"
            )
        # A folder of its own, since several workers may share a machine; what is computed from
        # teacher and pages alone they share, in the folder of the search.
        who = f"{socket.gethostname()}-{os.getpid()}"
        shared = Path(joined.config.get("cache") or Path(joined.config["output"]) / "work")
        given = {
            **joined.config,
            "output": str(output or f"{joined.config['output']}-worker-{who}"),
            "cache": str(shared) if _writable(shared) else None,
            "search": {**joined.config["search"], "storage": opened.url},
        }
        work = Workspace(check_config(given, f"study {name}", overrides), reporter(quiet=quiet))
        lock = work.claim()
        try:
            work.write_config()
            line = Pipeline(work)
            line.space = joined.space  # measured limits are those of the study, not this process's
            return stages.join(work, joined, line.trainer)
        finally:
            lock.release()


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # on this machine the search's folder cannot even be made
        return False
    return os.access(folder, os.W_OK)
