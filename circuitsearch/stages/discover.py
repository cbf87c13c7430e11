"""Discovery stages: scores with exact effects, paths, the circuit graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitsearch.core.cost import ACCOUNTINGS, unit_costs
from circuitsearch.core.errors import DataError
from circuitsearch.core.files import write_json
from circuitsearch.core.page_maps import PageMaps
from circuitsearch.core.scores import Scores
from circuitsearch.discovery.circuit import find_circuit
from circuitsearch.discovery.graph.record import SCHEMA, CircuitGraph
from circuitsearch.discovery.lens.page_maps import has_grid, page_maps
from circuitsearch.discovery.paths.keyword import keyword_paths
from circuitsearch.discovery.paths.table import PathTable
from circuitsearch.discovery.sample import make_sample
from circuitsearch.discovery.scoring import score_components
from circuitsearch.show.report import read_result
from circuitsearch.show.viewer import write_circuit_html
from circuitsearch.teacher.documents.records import Page, fingerprint
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace

__all__ = ["draw_circuit", "score", "trace_paths", "write_circuit_page"]

_RECORD = 2  # raised when scores on file no longer mean what they mean now


def score(work: Workspace, teacher: Teacher, pages: Sequence[Page]) -> Scores:
    """Score and patch every component; also written as `scores.json`."""
    settings = work.config.scores

    def compute() -> dict[str, Any]:
        with work.say.stage("scoring components") as tell:
            sample = make_sample(teacher, pages)
            made = score_components(
                teacher,
                sample,
                ablation=settings.ablation,
                metric=settings.metric,
                progress=lambda stage, done, total: tell(done, total, stage),
            )
        return made.to_json()

    key = ["scores", _RECORD, teacher.fingerprint, fingerprint(pages), settings.model_dump()]
    data = work.kept("scores", key, compute)
    write_json(work.folder / "scores.json", data)
    return Scores.from_json(data)


def trace_paths(work: Workspace, teacher: Teacher, pages: Sequence[Page]) -> PathTable:
    """Tabulate the paths from the keyword to the last cross-attention's query."""

    def compute() -> dict[str, Any]:
        with work.say.stage("tracing paths") as tell:
            table = keyword_paths(
                teacher,
                make_sample(teacher, pages),
                progress=lambda stage, done, total: tell(done, total, stage),
            )
        return table.to_json()

    key = ["paths", teacher.fingerprint, fingerprint(pages)]
    return PathTable.from_json(work.kept("paths", key, compute))


def draw_circuit(
    work: Workspace, teacher: Teacher, pages: Sequence[Page], paths: PathTable
) -> dict[str, Any]:
    """Assemble the circuit graph and write `circuit.json`, `.graphml` and `.html`."""
    settings = work.config.circuit

    def compute() -> dict[str, Any]:
        generation = work.config.generation.counted()
        with work.say.stage("finding the circuit") as tell:
            others = pages[settings.pages :] or pages
            circuit = find_circuit(
                teacher,
                make_sample(teacher, pages[: settings.pages]),
                ablation=settings.ablation,
                metric=settings.metric,
                level=settings.level,
                held_out=make_sample(teacher, others) if "mean" in settings.ablation else None,
                paths=paths,
                costs={
                    str(name): unit_costs(teacher.shape, name, generation) for name in ACCOUNTINGS
                },
                seed=work.config.seed,
                memory_limit=settings.memory_gigabytes * 1e9,
                progress=lambda stage, done, total: tell(done, total, stage),
            )
        return circuit.to_node_link()

    about = [teacher.fingerprint, paths.to_json(), work.config.generation.model_dump()]
    key = ["circuit", SCHEMA, _RECORD, fingerprint(pages), settings.measured(), work.config.seed]
    data: dict[str, Any] = work.kept("circuit", [*key, *about], compute)
    circuit = CircuitGraph.from_node_link(data)
    write_json(work.folder / "circuit.json", data)
    circuit.save_graphml(work.folder / "circuit.graphml")
    write_circuit_page(work, teacher, data, pages)
    return data


def write_circuit_page(
    work: Workspace, teacher: Teacher, circuit: Mapping[str, Any], pages: Sequence[Page]
) -> None:
    """Write `circuit.html`: the graph, pages with where heads look, the result table's plans.

    Args:
        work: The search; the plans of a table in its folder can be chosen on the page.
        teacher: The teacher.
        circuit: The graph as node-link JSON.
        pages: Those that the graph was made from.
    """
    try:
        rows = read_result(work.folder)[0]
    except DataError:  # none yet, or damaged: the report will write it anew, and this page with it
        rows = ()
    write_circuit_html(
        circuit,
        work.folder / "circuit.html",
        plans={row.name: row.plan for row in rows if row.phase != "teacher"},
        title=f"Circuit of {work.config.teacher}",
        pages=_shown(work, teacher, pages),
    )


def _shown(work: Workspace, teacher: Teacher, pages: Sequence[Page]) -> tuple[PageMaps, ...]:
    """Return where heads look on the pages that the circuit page shows."""
    wanted = work.config.circuit.shown_pages
    if wanted is None:  # an image of somebody's document leaves the machine only when asked to
        rendered = work.config.data.source == "rendered"
        wanted = int(rendered and has_grid(teacher))
    asked = [page for page in pages if page.questions][:wanted]
    if not asked:
        return ()
    with work.say.stage("reading where heads look"):
        return page_maps(teacher, asked)
