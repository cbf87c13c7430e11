"""The small teacher and cases of it under a budget, shared by the tests of the rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from circuitsearch.students.baselines import Case
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.teacher.loading import Teacher
from tests.baseline_cases import make_case, small_teacher
from tests.student_fixtures import noise_pages


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return small_teacher(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def features(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return prepare_features(teacher, noise_pages(5), tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def make(teacher: Teacher, features: Features) -> Callable[..., Case]:
    return lambda budget, **options: make_case(teacher, features, budget, **options)
