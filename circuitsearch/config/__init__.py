"""The configuration of a search: one YAML file, checked whole before anything runs.

Every field has its unit and meaning here and its default nowhere else; unknown keys are refused
with the nearest known one. Paths are relative to the folder the command is run in.
"""

from .data import SPLITS, DataConfig, DocVQAData, RenderedData, RowsData
from .search import SearchConfig
from .sections import (
    AnalysesConfig,
    CircuitConfig,
    DistillConfig,
    ElasticConfig,
    EvaluationConfig,
    ExhaustiveConfig,
    FinalConfig,
    GenerationConfig,
    LimitConfig,
    LossName,
    ReportConfig,
    ScoresConfig,
    SpaceConfig,
    StudyConfig,
)

__all__ = [
    "SPLITS",
    "AnalysesConfig",
    "CircuitConfig",
    "DataConfig",
    "DistillConfig",
    "DocVQAData",
    "ElasticConfig",
    "EvaluationConfig",
    "ExhaustiveConfig",
    "FinalConfig",
    "GenerationConfig",
    "LimitConfig",
    "LossName",
    "RenderedData",
    "ReportConfig",
    "RowsData",
    "ScoresConfig",
    "SearchConfig",
    "SpaceConfig",
    "StudyConfig",
]
