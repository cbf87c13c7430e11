"""Made-up findings: every kind of chart, every answer of a verdict, a table of every length."""

from __future__ import annotations

import math
from typing import Any

from circuitsearch.core.findings import ANSWERS, Chart, Finding, Series, Table, Verdict

__all__ = ["FACTS", "bars", "finding", "findings", "heat", "lines", "verdict"]

FACTS: dict[str, Any] = {
    "title": "Claims asked of a made-up teacher",
    "command": "circuitsearch analyze out/search.yaml",
    "measured on": "120 questions on 40 pages",
    "versions": {"circuitsearch": "0", "torch": "0"},
}


def bars(places: int = 12, series: int = 2, word: str | None = None) -> Chart:
    names = tuple(word or f"{'SCM'[place % 3]}{place // 3}" for place in range(places))
    made = []
    for number in range(series):
        y = [math.sin(0.7 * place + number) for place in range(places)]
        known: list[float | None] = [*y]
        known[1] = None  # a gap
        made.append(
            Series(
                word or f"part {number}",
                tuple(known),
                tuple(one - 0.1 for one in y),
                # an end inside the value, as a rounding may leave it
                (*(one + 0.1 for one in y[:-1]), y[-1] - 1e-9),
            )
        )
    return Chart(
        word or "Rise without it", "bars", names, word or "sub-layer", word or "nats", tuple(made)
    )


def lines(word: str | None = None, *, log_x: bool = True) -> Chart:
    x = (1.0, 2.0, 8.0, 64.0)
    made = tuple(
        Series(
            word or f"rule {number}",
            (0.1 * number, 0.5, None, 0.9),
            (0.05 * number, 0.4, None, 0.8),
            (0.2 * number, 0.6, None, 0.95),
        )
        for number in range(3)
    )
    return Chart(
        word or "Kept by size", "lines", x, word or "heads kept", word or "share", made, log_x
    )


def heat(rows: int = 12, columns: int = 12, word: str | None = None, *, low: float = -1) -> Chart:
    names = tuple(word or f"L{place}" for place in range(columns))
    made = tuple(
        Series(
            word or f"H{row}",
            tuple(
                None
                if row == column
                else low + (1 - low) * (row + 2 * column) / (rows + 2 * columns)
                for column in range(columns)
            ),
        )
        for row in range(rows)
    )
    return Chart(
        word or "Agreement of heads", "heat", names, word or "reader", word or "correlation", made
    )


def verdict(answer: Any, word: str | None = None) -> Verdict:
    return Verdict(
        claim=word or f"Claim that is {answer}",
        says=word or "A sub-layer does what was said of it.",
        paper=word or ("" if answer == "cannot be asked" else "0.7"),
        here=word or "0.71 [0.65, 0.78], n = 120",
        answer=answer,
        rule=word or "shown if the whole interval is above 0.5",
    )


def finding(name: str, word: str | None = None, *, whole: bool = True) -> Finding:
    """A finding; `word` stands wherever text does, and only a verdict where it is not `whole`."""
    answers = ANSWERS if whole else ANSWERS[:1]
    long = [(word or f"row {n}", n, n / 7, None) for n in range(40)]
    short = [(word or "all", 12345, -0.000012345, word or "far"), (word or "none", 0, None, None)]
    head = tuple(word or name for name in ("part", "n", "rise", "what"))
    return Finding(
        analysis=name,
        title=word or f"What {name} does",
        asks=word or "Does the sub-layer matter, and why should one care?",
        method=word or "It was left out, and the loss was measured again.",
        examples=120 if whole else 0,
        tables=(
            Table(word or "Rise of the loss, nats", head, tuple(short)),
            Table(word or "Every part", head, tuple(long)),
        )
        if whole
        else (),
        charts=(bars(4, word=word), lines(word), heat(3, 3, word)) if whole else (),
        verdicts=tuple(verdict(answer, word) for answer in answers),
        notes=(word or "The teacher is small.",) if whole else (),
        values={"mean": 0.5} if whole else None,
    )


def findings(word: str | None = None) -> dict[str, Finding]:
    whole, small = finding("whole", word), finding("small", word, whole=False)
    return {"whole": whole, "small": small}
