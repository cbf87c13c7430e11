"""A made-up teacher and additive landscapes with a known optimum, for the tests of the search.

The shapes are small but keep Donut's proportions (S and C cost the same parameters, M twice as
much; C costs by far the most MACs). A landscape gives every plan a quality without any training.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import numpy as np
import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.errors import TrainingError
from circuitsearch.core.files import seed_from
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import DecoderShape, EncoderShape, TeacherShape
from circuitsearch.search.samplers import Prior
from circuitsearch.search.space import Space
from circuitsearch.search.storage.connection import close_storage, open_storage
from circuitsearch.search.study import Study
from circuitsearch.search.units import Choices

__all__ = ["Landscape", "kill_at_statement", "limit", "make_space", "run_story", "teacher_shape"]


def teacher_shape(layers: int = 4) -> TeacherShape:
    """A teacher with the proportions of Donut at a 32nd of its width."""
    decoder = DecoderShape(
        layers=layers, d_model=32, heads=4, head_dim=8, ffn=128, vocabulary=200, encoder_width=32
    )
    return TeacherShape("toy", decoder, EncoderShape(10_000, 1_000_000, tokens=150, width=32))


def limit(
    value: str | int,
    quantity: str = "parameters",
    scope: str = "decoder",
    accounting: str = "paper",
) -> LimitSpec:
    """A limit in the order in which the tests vary its parts."""
    return LimitSpec(quantity, value, scope, accounting)  # type: ignore[arg-type]


def make_space(*limits: str | LimitSpec, layers: int = 4, choices: Choices | None = None) -> Space:
    """The space under these limits; a bare text limits the decoder's parameters (paper)."""
    shape = teacher_shape(layers)
    specs = [limit(one) if isinstance(one, str) else one for one in limits]
    return Space(shape, Budget.resolve(specs, shape), choices)


class Landscape:
    """Quality of plans: the sum of fixed worths of the kept units, in [0, 1], optionally noisy.

    The noise is a function of plan and seed, so evaluating a plan twice gives the same number.
    """

    def __init__(self, space: Space, worths: Sequence[float], noise: float = 0.0) -> None:
        self.space = space
        self.worths = np.asarray(worths, dtype=float)
        self.noise = noise
        self.calls: list[tuple[str, str]] = []

    @classmethod
    def random(cls, space: Space, seed: int, noise: float = 0.0) -> Landscape:
        """Few units matter: worths from a Gamma(0.6), scaled so that all together give 0.9."""
        worths = np.random.default_rng(seed).gamma(0.6, size=len(space.units))
        return cls(space, 0.9 * worths / worths.sum(), noise)

    def quality(self, plan: Plan) -> float:
        """The noise-free quality."""
        return float(np.dot(self.worths, self.space.bits(plan)))

    def best(self) -> float:
        """The optimum over all feasible plans."""
        return max(self.quality(plan) for plan in self.space.enumerate())

    def prior(self, correlation: float = 1.0, seed: int = 0) -> dict[str, float]:
        """Scores that correlate with the worths; 1 gives the worths themselves."""
        other = np.random.default_rng(seed).permutation(self.worths)
        mixed = correlation * self.worths + np.sqrt(1 - correlation**2) * other
        return dict(zip(self.space.names, mixed.tolist(), strict=True))

    def knowledge(self, correlation: float = 1.0, seed: int = 0) -> Prior:
        """The same scores, and a ranking of all plans by what they predict."""
        worths = self.prior(correlation, seed)
        array = np.array([worths[name] for name in self.space.names])
        plans = list(self.space.enumerate())
        losses = [-float(np.dot(array, self.space.bits(plan))) for plan in plans]
        return Prior(worths, tuple(zip(plans, losses, strict=True)))

    def measure(self, plan: Plan, source: str = "sampler") -> Measurement:
        """Evaluate a plan as a study would; every call is recorded in `calls`."""
        self.calls.append((str(plan), source))
        rng = np.random.default_rng(seed_from("landscape", plan.hash))
        quality = self.quality(plan) + self.noise * float(rng.standard_normal())
        return Measurement(
            plan=str(plan),
            plan_hash=plan.hash,
            phase="short",
            loss=1.0 - quality,
            quality=min(1.0, max(0.0, quality)),
            examples=10,
            seed=0,
            steps=1,
            source=source,
        )


def kill_at_statement(storage: RDBStorage, statement: int) -> None:
    """Let this process die by SIGKILL just before it sends that SQL statement (counted from 1)."""
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == statement:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(storage.engine, "before_cursor_execute", count)


def run_story(url: str, statement: int = 0, pause: float = 0.0) -> None:
    """Run the study that the tests of killing compare: warm plans, a failing plan, then proposals.

    Args:
        url: the database; must hold all tables.
        statement: die before that SQL statement; 0 lives on.
        pause: seconds that each evaluation takes.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = make_space("40%", limit("50%", "macs"))
    landscape = Landscape.random(space, 5, noise=0.02)

    def evaluate(plan: Plan, source: str) -> Measurement:
        time.sleep(pause)
        if plan == Plan.parse("C1 M2"):
            raise TrainingError("loss is not finite")
        return landscape.measure(plan, source)

    storage = open_storage(url)
    if statement:
        kill_at_statement(storage, statement)
    study = Study.open(storage, "story", space, {"steps": 3}, 11, "circuit", landscape.prior(0.6))
    warm = [(Plan.parse(text), "scores") for text in ("C0 S1", "C1 M2", "C3 M3")]
    # Being killed again and again is not the plans' fault here.
    study.run(evaluate, 9, warm, attempts=1000)
    close_storage(storage)
