"""What the commands do, from Python: one class for a search, one function per other command.

Every name calls the functions that its command calls, so defaults, checks and results are the same.
torch and transformers are imported by the calls that need them, not with this package.
"""

from .functions import (
    answer_question,
    compare,
    cost,
    export,
    load_student,
    load_teacher,
    open_study,
)
from .joining import join_study
from .search import Search

__all__ = [
    "Search",
    "answer_question",
    "compare",
    "cost",
    "export",
    "join_study",
    "load_student",
    "load_teacher",
    "open_study",
]
