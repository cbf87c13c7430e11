"""What each stage of the pipeline does, and under which key its result is kept.

A stage takes the workspace and the results of earlier stages, calls one floor, and returns what
the next stage needs. Keys hold everything that decides a result: the teacher's fingerprint, the
pages' hash, the settings.
"""

from .analyzing import analyze, chosen_analyses
from .baselines import propose
from .comparing import compare
from .discover import draw_circuit, score, trace_paths
from .distilling import distill_plan
from .inputs import compute_features, documents, fit, load, plan_space
from .pricing import measure_time, price
from .ranking import Ranking, interpolated, mixed, rank, train_elastic
from .reporting import card_facts, hand_over, outputs, preview, report
from .searching import check_fork, check_storage, check_study, fork, join, promote, search, versions
from .speeds import measure_onnx
from .spending import passes_before
from .submission import answer_file
from .training import StudentTrainer, evaluate
from .warm import WarmPlans, predict, warm_start, worths

__all__ = [
    "Ranking",
    "StudentTrainer",
    "WarmPlans",
    "analyze",
    "answer_file",
    "card_facts",
    "check_fork",
    "check_storage",
    "check_study",
    "chosen_analyses",
    "compare",
    "compute_features",
    "distill_plan",
    "documents",
    "draw_circuit",
    "evaluate",
    "fit",
    "fork",
    "hand_over",
    "interpolated",
    "join",
    "load",
    "measure_onnx",
    "measure_time",
    "mixed",
    "outputs",
    "passes_before",
    "plan_space",
    "predict",
    "preview",
    "price",
    "promote",
    "propose",
    "rank",
    "report",
    "score",
    "search",
    "trace_paths",
    "train_elastic",
    "versions",
    "warm_start",
    "worths",
]
