"""`circuitsearch report`: the report of a search made again from its folder; nothing is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shell import command, people

if TYPE_CHECKING:
    from circuitsearch.search.storage.view import StudyView

__all__ = ["report_command"]


@command
def report_command(
    folder: Annotated[Path, typer.Argument(help="Output folder of a search.")],
    html: Annotated[
        Path | None, typer.Option(help="Where to write; default report.html in the folder.")
    ] = None,
) -> None:
    """Write the report of a finished search again from its folder, without running anything."""
    from circuitsearch.core.errors import ConfigError
    from circuitsearch.show.report import has_result, write_report

    if not has_result(folder):
        raise ConfigError(
            f"{folder}: no result.json there; give the output folder of a search that ran through "
            "(circuitsearch run SEARCH.yaml)"
        )
    with _study(folder) as (study, further):
        if study is None:
            people().print("no study database there: its trials are left out", markup=False)
        path = write_report(folder, study, html, further=further)
    people().print(f"report         {path}", markup=False)


@contextmanager
def _study(folder: Path) -> Iterator[tuple[StudyView | None, list[StudyView]]]:
    """Open the study of a search's folder, which may have been moved, and its further phases.

    There is no study without a database.
    """
    from circuitsearch.configfile import load_config
    from circuitsearch.search.storage.connection import close_storage, open_storage
    from circuitsearch.search.storage.view import StudyView
    from circuitsearch.studies import check_there, study_named
    from circuitsearch.workspace import CONFIG_FILE

    path, beside = folder / CONFIG_FILE, folder / "study.db"
    config = load_config(path) if path.exists() else None
    named = None if config is None else config.search.storage
    if named is None and not beside.exists():
        yield None, []
        return
    where = named or str(beside.absolute())
    check_there(where)
    storage = open_storage(where)
    try:
        name = study_named(storage, None if config is None else config.name)
        view = StudyView(storage, name)
        yield view, [StudyView(storage, name, phase) for phase in view.phases()]
    finally:
        close_storage(storage)
