"""Published pruning methods, to be run at the budget, data and distillation of the search.

Every method is a file with its paper's rule and a row of `BASELINES`; a new one is a function and a
row, and passes `tests/conformance/test_baselines.py`. `docs/baselines.md` says what each rule is
and where it differs from its paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from .base import Case, Proposal
from .evopress import evopress
from .finercut import finercut
from .magnitude import magnitude, magnitude_unstructured
from .masks import Masks, masked
from .minitron import minitron
from .mint import SIBLINGS, mint
from .puzzle import puzzle
from .random_plans import DRAWS, random_plans
from .shortgpt import shortgpt, shortgpt_sublayers
from .taylor import taylor
from .units import widths
from .wanda import wanda, wanda_unstructured

__all__ = ["BASELINES", "Baseline", "Case", "Masks", "Proposal", "masked", "widths"]


@dataclass(frozen=True)
class Baseline:
    """One published method.

    Attributes:
        name: as in a search file.
        title: as in a table.
        paper: arXiv id.
        rule: what decides, in one line.
        kind: `plan` (one student), `plans` (several, the paper's own choice first; may be none),
            `draws` (several at random, none of them special), `masks` (single weights).
        propose: gives the students to distil.
        most: how many these are at most.
    """

    name: str
    title: str
    paper: str
    rule: str
    kind: Literal["plan", "plans", "draws", "masks"]
    propose: Callable[[Case], tuple[Proposal, ...]]
    most: int = 1


_PUZZLE = "largest sum of replace-one worths, by integer program"
_FINERCUT = "greedy: the removal that moves the logits least"

_ROWS = (
    Baseline(
        "magnitude",
        "Magnitude",
        "1506.02626",
        "smallest L2 norm of weights per cost goes",
        "plan",
        magnitude,
    ),
    Baseline(
        "magnitude-unstructured",
        "Magnitude, unstructured",
        "1506.02626",
        "smallest |W| of every matrix becomes zero",
        "masks",
        magnitude_unstructured,
    ),
    Baseline(
        "wanda",
        "Wanda, structured reading",
        "2306.11695",
        "smallest mean |W| |X| over the columns that write goes",
        "plan",
        wanda,
    ),
    Baseline(
        "wanda-unstructured",
        "Wanda",
        "2306.11695",
        "smallest |W| |X| of every output row becomes zero, layer by layer",
        "masks",
        wanda_unstructured,
    ),
    *(
        Baseline(
            "finercut" if distance == "norm" else f"finercut-{distance}",
            f"FinerCut ({distance})",
            "2405.18218",
            f"{_FINERCUT} ({distance})",
            "plan",
            partial(finercut, distance=distance),
        )
        for distance in ("norm", "angular", "kl", "js")
    ),
    Baseline(
        "shortgpt",
        "ShortGPT",
        "2403.03853",
        "layer of smallest block influence goes",
        "plan",
        shortgpt,
    ),
    Baseline(
        "shortgpt-sublayers",
        "ShortGPT by sub-layer",
        "2403.03853",
        "sub-layer of smallest block influence goes",
        "plan",
        shortgpt_sublayers,
    ),
    Baseline(
        "minitron",
        "Minitron",
        "2407.14679",
        "homogeneous shapes; activations rank, loss of the ten largest decides",
        "plan",
        minitron,
    ),
    Baseline(
        "taylor",
        "Taylor, weights",
        "2305.11627",
        "smallest sum of |w dL/dw| per cost goes",
        "plan",
        partial(taylor, form="weights"),
    ),
    Baseline(
        "taylor-gate",
        "Taylor, gates",
        "1905.10650",
        "smallest |<z, dL/dz>| per cost goes",
        "plan",
        partial(taylor, form="gate"),
    ),
    Baseline(
        "evopress",
        "EvoPress",
        "2410.14649",
        "(1 + 32) evolution on KL with compensating swaps",
        "plan",
        evopress,
    ),
    Baseline(
        "puzzle",
        "Puzzle (KL)",
        "2411.19146",
        f"{_PUZZLE} (KL)",
        "plan",
        partial(puzzle, score="kl"),
    ),
    Baseline(
        "puzzle-cosine",
        "Puzzle (cosine)",
        "2411.19146",
        f"{_PUZZLE} (cosine of last hidden states)",
        "plan",
        partial(puzzle, score="cosine"),
    ),
    Baseline(
        "random",
        "Random plans",
        "",
        "units in random order, as long as they fit",
        "draws",
        random_plans,
        DRAWS,
    ),
    Baseline(
        "mint",
        "Donut-MINT, by hand",
        "2509.26235",
        "the paper's plans and their siblings, where they fit",
        "plans",
        mint,
        len(SIBLINGS),
    ),
)

BASELINES: dict[str, Baseline] = {row.name: row for row in _ROWS}
"""Published methods by name."""
