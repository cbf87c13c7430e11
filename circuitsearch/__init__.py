"""circuitsearch: from a trained document model and a budget to a small, trained, loadable student.

The names below do what the commands do (`api`, docs/api.md). They are looked up when they are first
used, so `import circuitsearch` imports neither torch nor anything else that takes long.

The folders are the pipeline, floor by floor: `core` (the words as records), `teacher` (models and
documents), `discovery` (which components carry the behaviour), `students` (build and distil),
`search` (which plan next), `show` (tables, plots, circuit page). `pipeline` calls them in order.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitsearch.api import (
        Search,
        answer_question,
        compare,
        cost,
        export,
        join_study,
        load_student,
        load_teacher,
        open_study,
    )
    from circuitsearch.config import SearchConfig
    from circuitsearch.configfile import load_config
    from circuitsearch.core.errors import CircuitSearchError
    from circuitsearch.core.plan import Plan

__version__ = "0.1.0"

__all__ = [
    "CircuitSearchError",
    "Plan",
    "Search",
    "SearchConfig",
    "__version__",
    "answer_question",
    "compare",
    "cost",
    "export",
    "join_study",
    "load_config",
    "load_student",
    "load_teacher",
    "open_study",
]

_ELSEWHERE = {
    "CircuitSearchError": "core.errors",
    "Plan": "core.plan",
    "SearchConfig": "config",
    "load_config": "configfile",
}
"""Modules of the names that do not live in `api`."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ELSEWHERE.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return what the module holds, public names included before they are used."""
    return sorted({*globals(), *__all__})
