"""Floor 3: students. A plan comes in, a trained student and its `Measurement` go out.

`student` slices the teacher's weights into a Hugging Face model (`modeling`), `fitting` fits what
stands in for a sub-layer (`replacements`), `checkpoint` saves
and loads it, `features` caches what the frozen parts of the teacher say about the pages, `distill`
trains any student on that with the `losses`, and `evaluate` asks it the questions.

Importing this package registers the student's classes with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from .card import CardFacts
from .checkpoint import load_student, save_student
from .distill import DistillRecipe, DistillResult, distill
from .evaluate import answer_loss_of, greedy_answers, measure
from .features import Features, prepare_features
from .fitting import fit_replacements
from .modeling import CircuitMBartConfig, CircuitMBartForCausalLM
from .replacements import Replacements, replaced
from .student import build_student, kept_units, plan_of, rank_neurons

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
    "fit_replacements",
    "greedy_answers",
    "kept_units",
    "load_student",
    "measure",
    "plan_of",
    "prepare_features",
    "rank_neurons",
    "replaced",
    "save_student",
]
