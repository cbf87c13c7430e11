"""Floor 3: students. A plan comes in, a trained student and its `Measurement` go out.

`student` slices the teacher's weights into a Hugging Face model (`modeling`; `remote` lets it load
without this package), `fitting` fits what stands in for a sub-layer (`replacements`), `plan_view`
runs a plan without building it and `walk` many at once. `features/` caches what the frozen parts of
the teacher say about the pages, `training/` trains any student on that with the `losses/`,
`evaluate` asks it questions and `speed` times it; `saving/` and `export/` write it, `baselines/`
are other people's plans.

Importing this package registers the student's classes with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from circuitsearch.students.evaluate import answer_loss_of, examine, greedy_answers
from circuitsearch.students.features.prepare import Features, prepare_features
from circuitsearch.students.fitting import fit_replacements
from circuitsearch.students.modeling import CircuitMBartConfig, CircuitMBartForCausalLM
from circuitsearch.students.replacements import Replacements, replaced
from circuitsearch.students.saving.card import CardFacts
from circuitsearch.students.saving.checkpoint import load_student, save_student
from circuitsearch.students.student import build_student, kept_units, plan_of, rank_neurons
from circuitsearch.students.training.distill import DistillRecipe, DistillResult, distill

AutoConfig.register(CircuitMBartConfig.model_type, CircuitMBartConfig, exist_ok=True)
AutoModelForCausalLM.register(CircuitMBartConfig, CircuitMBartForCausalLM, exist_ok=True)

__all__ = [
    "CardFacts",
    "CircuitMBartConfig",
    "CircuitMBartForCausalLM",
    "DistillRecipe",
    "DistillResult",
    "Features",
    "Replacements",
    "answer_loss_of",
    "build_student",
    "distill",
    "examine",
    "fit_replacements",
    "greedy_answers",
    "kept_units",
    "load_student",
    "plan_of",
    "prepare_features",
    "rank_neurons",
    "replaced",
    "save_student",
]
