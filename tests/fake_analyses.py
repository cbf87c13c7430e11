"""Small analyses that take no time, for the command around the real ones.

As a program: `circuitsearch` with these analyses in the place of the real ones, for tests that need
a process of its own. RAN names a file to which every analysis that is run adds its name; while the
file WAIT exists, `third` does not end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from circuitsearch.core.findings import Chart, Finding, Series, Table, Verdict
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.discovery.analyses.registry import ANALYSES, Analysis

__all__ = ["fakes", "made"]


def made(name: str, material: Material, **values: object) -> Finding:
    """A finding that says what it was given."""
    here = f"{len(material.pages)} and {len(material.others)} pages, seed {material.seed}"
    return Finding(
        analysis=name,
        title=f"The {name} one",
        asks="Does it run?",
        method="It ran.",
        examples=material.sample.examples,
        tables=(Table("Seen", ("what", "n"), (("pages", len(material.pages)),)),),
        charts=(Chart("Bars", "bars", ("a",), "place", "n", (Series("n", (1.0,)),)),),
        verdicts=(Verdict(f"Claim {name}", "It runs.", "", here, "shown", "always"),),
        values=values or None,
    )


def fakes(
    ran: Callable[[str], None], wait: Callable[[], bool] = lambda: False
) -> dict[str, Analysis]:
    """Three analyses; the second reads the first."""

    def first(material: Material) -> Finding:
        ran("first")
        material.progress("counting", 1, 2)
        return made("first", material, seen=sorted(material.found))

    def second(material: Material) -> Finding:
        ran("second")
        earlier = material.found["first"]
        return made("second", material, seen=sorted(material.found), title=earlier.title)

    def third(material: Material) -> Finding:
        ran("third")
        while wait():
            time.sleep(0.02)
        return made("third", material, seen=sorted(material.found))

    return {
        "first": Analysis(first, "it is first"),
        "second": Analysis(second, "it reads the first", after=("first",)),
        "third": Analysis(third, "it stands alone"),
    }


def _replace(registry: Mapping[str, Analysis]) -> None:
    """Put the fakes into the place of the real analyses."""
    assert isinstance(registry, dict)
    registry.clear()

    def ran(name: str) -> None:
        with Path(os.environ["RAN"]).open("a") as file:
            file.write(f"{name}\n")

    registry.update(fakes(ran, lambda: Path(os.environ["WAIT"]).exists()))


if __name__ == "__main__":
    from circuitsearch.cli.main import main

    _replace(ANALYSES)
    main()
