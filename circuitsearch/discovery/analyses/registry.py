"""The analyses by name, in the order they run; a new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from circuitsearch.core.findings import Finding

from .case import case_analysis
from .cleaner import cleaner_analysis
from .costs import costs_analysis
from .heads import heads_analysis
from .keywords import keywords_analysis
from .material import Material
from .paths import paths_analysis
from .plans import plans_analysis
from .reprojection import reprojection_analysis
from .retrieval import retrieval_analysis
from .skip import skip_analysis
from .transcription import transcription_analysis

__all__ = ["ANALYSES", "Analysis"]


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Attributes:
        run: makes its finding.
        about: what it reproduces, for lists.
        after: analyses whose findings it reads.
    """

    run: Callable[[Material], Finding]
    about: str
    after: tuple[str, ...] = ()


ANALYSES: Mapping[str, Analysis] = {
    "costs": Analysis(costs_analysis, "parameters and multiply-adds (Table 1)"),
    "skip": Analysis(skip_analysis, "what skipping each sub-layer costs (Figure 3)"),
    "transcription": Analysis(transcription_analysis, "encoder states as tokens (Figure 4)"),
    "cleaner": Analysis(cleaner_analysis, "the last feed-forward as a cleaner (Figure 5)"),
    "reprojection": Analysis(reprojection_analysis, "streams as their nearest tokens (Figure 6)"),
    "case": Analysis(case_analysis, "lower-casing by the first feed-forward (Proposition 3)"),
    "paths": Analysis(paths_analysis, "paths from the keyword to the query (Proposition 4)"),
    "keywords": Analysis(keywords_analysis, "how a keyword becomes a query (Proposition 4)"),
    "retrieval": Analysis(retrieval_analysis, "what the query encodes (Figure 7)"),
    "heads": Analysis(heads_analysis, "head statistics against effects (Section 3.3)"),
    "plans": Analysis(
        plans_analysis,
        "the plans that follow from the findings",
        after=("skip", "cleaner", "case", "paths", "heads"),
    ),
}
"""Every analysis by name."""
