"""A study: propose, evaluate, record, by any number of workers on any number of machines.

The loop knows nothing of training: `evaluate` is handed in. All decisions are transactions of the
`ledger` in the study's database, so workers need no scheduler, may come and go, and may be killed
at any moment. Every worker does the same:

1. *Queue* the warm-start plans, all checked first: an infeasible plan is never a trial. Where the
   budget has measured limits, every plan's student is measured before (`admission`); warm plans
   and proposals that turn out to be over a limit are left out, counted, and not proposed again.
2. *Claim* the next plan: one that a dead worker left or a live one handed back, else the first that
   is queued, else the sampler's proposal. Proposals depend on the study's history alone, so a
   study with one worker that is killed and run again goes on as if nothing had happened.
3. *Evaluate* it, while a heartbeat extends the claim, and *record* the result.

A worker that finds the rest of the budget in the hands of others waits for them: it takes over what
they leave behind if they die. An evaluation that raises `TrainingError` fails its plan for good and
the study goes on; any other exception, Ctrl-C included, hands the plan back and leaves the loop.

What a study is about (objective, space, seed, sampler, prior) is stored with it and compared when
it is opened again; how far to run it (trainings, failures allowed) may change at any time. A study
that was asked to stop stays stopped, for workers that are started later too, until a run with
`resume=True` takes that back.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import Any

from optuna.storages import RDBStorage

from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    PlanError,
    StorageError,
    TrainingError,
    choice_problem,
    raise_together,
)
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.search.admission import Admission, Admit
from circuitsearch.search.samplers import (
    REGISTRY,
    FeasibleSampler,
    Goal,
    History,
    Prior,
    SpaceExhaustedError,
)
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.storage.ledger import LEASE, Ledger, Outlook, Terms
from circuitsearch.search.storage.mirror import Mirror, mirror_name
from circuitsearch.search.storage.recall import Recall
from circuitsearch.search.storage.registration import add_phase, check_versions, register
from circuitsearch.search.storage.rows import Outcome, Row
from circuitsearch.search.storage.transactions import set_stop
from circuitsearch.search.storage.view import StudyView, TrialRecord, study_identity, trial_record
from circuitsearch.search.storage.workers import heartbeat, patiently, worker_name

__all__ = ["Ending", "Evaluate", "Study", "settled"]

Evaluate = Callable[[Plan, str], Measurement]
"""Evaluates a plan, given also who proposed it; raises TrainingError when its training fails."""


class Ending(StrEnum):
    """Why a run ended normally."""

    TRAININGS = "trainings"
    """As many plans are evaluated as were asked for."""
    EXHAUSTED = "exhausted"
    """Every feasible plan was tried; of a further phase: every plan that was given to it."""
    STOPPED = "stopped"
    """The study was asked to stop."""


class Study(StudyView):
    """A search over the plans of one space; `Study.open` begins one, `Study.attach` joins in."""

    def __init__(
        self,
        storage: RDBStorage,
        name: str,
        space: Space,
        sampler: FeasibleSampler | None,
        phase: str | None = None,
    ) -> None:
        """Connect to an existing study; see `Study.open`."""
        super().__init__(storage, name, phase)
        self.space = space
        self._sampler = sampler
        self._mirror = Mirror(storage, mirror_name(name, phase), space)
        self._ledger = Ledger(storage, name, self._ledger.objective_hash, self._mirror)
        self._recall = Recall(self._ledger, space)
        self._rivals = 0  # races lost of late; a study with one worker never draws
        self._draw = random.Random()

    @classmethod
    def open(
        cls,
        storage: RDBStorage,
        name: str,
        space: Space,
        objective: Mapping[str, Any],
        seed: int,
        sampler: str = "circuit",
        prior: Prior | Mapping[str, float] | None = None,
        config: Any = None,
        versions: Mapping[str, Any] | None = None,
        goal: Goal = "single",
    ) -> Study:
        """Create a study, or open the one of that name if it is about the same.

        Nothing is evaluated, and no trial of an existing study is touched before `run`.

        Args:
            storage: from `open_storage`.
            name: the study's name in that storage.
            space: which plans are feasible.
            objective: plain JSON; everything a measurement depends on beside plan and seed
                (teacher, data, distillation settings ...).
            seed: seed of the proposals.
            sampler: name in `samplers.REGISTRY`.
            prior: what the sampler knows beforehand; a mapping gives scores per unit, positive =
                helps.
            config: plain JSON for the workers that join in with `attach`, kept unread; replaces
                an earlier one.
            versions: versions of the programs that matter, e.g. {"torch": "2.8.0"}. They may
                change between runs, but not while a worker is at work.
            goal: what the sampler looks for (`samplers.base`).

        Raises:
            ConfigError: the sampler is unknown, the prior incomplete, or the study of that name is
                about something else; the message lists each differing field.
            InfeasibleError: no legal student fits the budget.
            StorageError: the database fails.
        """
        proposing, about = settled(space, objective, seed, sampler, prior, goal)
        register(storage, name, Mirror(storage, mirror_name(name), space), about, config, versions)
        return cls(storage, name, space, proposing)

    @classmethod
    def attach(
        cls,
        storage: RDBStorage,
        name: str,
        versions: Mapping[str, Any] | None = None,
        phase: str | None = None,
    ) -> Study:
        """Join an existing study as one more worker; all settings are those stored with it.

        Args:
            storage: from `open_storage`.
            name: the study's name.
            versions: of this worker's programs; they must be equal to the stored ones.
            phase: which of its further phases; None for the search itself.

        Raises:
            ConfigError: there is no such study or phase, or the versions differ (the message lists
                every difference).
            StorageError: the database fails.
        """
        view = StudyView(storage, name, phase)
        check_versions(view, versions)
        about = view.identity
        space = Space.from_json(about["space"])
        if phase is not None:
            return cls(storage, name, space, None, phase)
        prior = None if about["prior"] is None else Prior.from_json(about["prior"])
        proposing = _sampler(about["sampler"], space, prior, about["seed"], about["goal"])
        return cls(storage, name, space, proposing)

    def phase(self, name: str, objective: Mapping[str, Any]) -> Study:
        """Return a further phase of this study: other measurements, with trials of their own.

        For example the full distillation of plans that the search has found by short ones. It has
        no sampler: it evaluates the plans that its `run` is given, and no others.

        Args:
            name: its name, at most 64 characters.
            objective: what its measurements depend on beside plan and seed.

        Raises:
            ConfigError: there is a phase of that name with another objective (the message lists
                each differing field), or of another name with the same one.
            StorageError: the database fails.
        """
        add_phase(self._storage, self.name, self.identity, name, objective)
        return Study(self._storage, self.name, self.space, None, name)

    def queue(
        self,
        plans: Sequence[tuple[Plan, str]],
        admit: Admit | None = None,
        lease: float = LEASE,
    ) -> int:
        """Queue plans, each with its source, for whoever runs the study; return how many are new.

        Args:
            plans: the plans.
            admit: measures a plan where the budget has measured limits; see `run`.
            lease: seconds after which a worker that is silent while it measures counts as dead.

        Raises:
            PlanError: plans are infeasible, or measured to be so; all are named with the numbers,
                none is queued.
            ConfigError: there are measured limits, and nothing measures them.
            StorageError: the database fails.
        """
        chosen = self._checked(plans)
        with worker_name() as me:
            admission = Admission(self.space, self._speeds, admit, me, lease)
            problems = [
                f"{plan} ({source}): {fault}"
                for plan, source in chosen
                for fault in admission.problems(plan)
            ]
        raise_together(problems, PlanError, "Plans over a measured limit")
        return self._ledger.queue(chosen)

    def admitted(
        self, plans: Sequence[Plan], admit: Admit | None = None, lease: float = LEASE
    ) -> list[Plan]:
        """Return those of some feasible plans that are within the measured limits.

        Args:
            plans: the plans.
            admit: measures a plan where the budget has measured limits; see `run`.
            lease: as for `queue`.

        Raises:
            ConfigError: there are measured limits, and nothing measures them.
            StorageError: the database fails.
        """
        with worker_name() as me:
            admission = Admission(self.space, self._speeds, admit, me, lease)
            return [plan for plan in plans if not admission.problems(plan)]

    def repair_mirror(self) -> int:
        """Show in Optuna's study what it lacks of the finished trials; return how many.

        `run` does so too: nothing is lost by deleting Optuna's study.

        Raises:
            ConfigError: Optuna has a study of that name which is no mirror.
            StorageError: the database fails.
        """
        self._mirror.prepare()
        return self._ledger.repair_mirror()

    def so_far(self) -> tuple[int, Measurement | None]:
        """Return how many plans are measured, and the best (`best`), while the study runs.

        Only what is new since the last time is read.

        Raises:
            StorageError: the database fails.
        """
        self._recall.update()
        return self._recall.measured, self._recall.best

    def stop(self) -> None:
        """Ask all workers to stop after their trials; see the module docstring.

        Raises:
            StorageError: the database fails.
        """
        set_stop(self._storage, self.name, True)

    def run(
        self,
        evaluate: Evaluate,
        trainings: int,
        warm: Sequence[tuple[Plan, str]] = (),
        on_trial: Callable[[TrialRecord], None] | None = None,
        *,
        admit: Admit | None = None,
        max_failures: int = 5,
        lease: float = LEASE,
        attempts: int = 3,
        worker: str | None = None,
        resume: bool = False,
    ) -> Ending:
        """Evaluate plans until `trainings` of them are measured in all.

        Those of earlier runs and of other workers count, so all workers are given the same number.

        Args:
            evaluate: measures a plan; its `Measurement.quality` is maximised.
            trainings: number of measured plans at which to stop.
            warm: plans to evaluate first, each with its source; known ones are passed over.
            on_trial: called after each trial of this worker that is measured or has failed.
            admit: measures what a plan's student needs, one figure per measured limit of the
                budget, by `Limit.name`; called once per plan, whatever the number of workers. Not
                needed, and not called, without measured limits.
            max_failures: number of failed trials, earlier runs included, that is put up with.
            lease: seconds after which a worker that gives no sign of life loses its plan; signs
                are given every third of it. Also how long a failing database is put up with.
            attempts: how many workers may die while they evaluate a plan before the plan fails.
            worker: a name that no other worker of the study has; made up when not given.
            resume: go on with a study that was asked to stop.

        Returns:
            Why the run ended.

        Raises:
            PlanError: warm plans are infeasible; all are named with the numbers, none is queued.
            ConfigError: there are measured limits, and nothing measures them.
            TrainingError: more than `max_failures` trials have failed.
            DataError: `evaluate` returned another plan's measurement, or one without quality.
            StorageError: the database fails.
        """
        terms = Terms(trainings, max_failures, lease, attempts)
        raise_together(terms.problems(), ConfigError, f"Study {self.name!r}")
        chosen = self._checked(warm)
        if resume:
            set_stop(self._storage, self.name, False)
        self.repair_mirror()
        with worker_name(worker) as me:
            admission = Admission(self.space, self._speeds, admit, me, lease)
            try:
                self._ledger.queue(self._warm(chosen, admission, trainings), trainings)
                while True:
                    got = self._claim(me, terms, admission)
                    if isinstance(got, Ending):
                        return got
                    record = self._carry_out(got, me, evaluate, lease, admission)
                    if on_trial is not None:
                        on_trial(record)
            except BaseException:
                # Ctrl-C or a fault outside the training: keep the plan for whoever comes next.
                # Should the database be what failed, it is found out that this worker is gone.
                with contextlib.suppress(StorageError):
                    self._ledger.release(me)
                raise

    def _checked(self, warm: Sequence[tuple[Plan, str]]) -> list[tuple[Plan, str]]:
        """Return the warm-start plans in canonical form; refuse all infeasible ones together."""
        problems = []
        for plan, source in warm:
            faults = _problems(self.space, plan)
            problems += [f"{str(plan) or '(empty)'} ({source}): {fault}" for fault in faults]
        raise_together(problems, PlanError, "Warm-start plans that are not feasible")
        return [(self.space.plan(self.space.bits(plan)), source) for plan, source in warm]

    def _warm(
        self, plans: list[tuple[Plan, str]], admission: Admission, trainings: int
    ) -> list[tuple[Plan, str]]:
        """Return the warm-start plans that are within the measured limits."""
        if not self.space.budget.measured:
            return plans
        if self._ledger.counts()["measured"] >= trainings:
            return []  # nothing will be queued, so nothing needs to be measured
        return [(plan, source) for plan, source in plans if not admission.problems(plan)]

    def _claim(self, me: str, terms: Terms, admission: Admission) -> Row | Ending:
        """Return the next plan for this worker, or why there is none; wait as long as needed."""
        pause, proposal = 0.05, None
        while True:
            got = patiently(partial(self._ledger.claim, me, terms, proposal), terms.lease)
            if isinstance(got, Row):
                self._rivals = max(self._rivals - 1, 0)
                return got
            if got is Outlook.SPENT:
                return Ending.TRAININGS
            if got is Outlook.STOPPED:
                return Ending.STOPPED
            wanted = got is Outlook.PROPOSE
            if wanted and proposal is not None:
                self._rivals = min(self._rivals + 1, 16)  # one was faster with the same proposal
            proposal = self._proposal(terms, admission) if wanted else None
            if wanted and proposal is None and self._recall.waiting + self._recall.running == 0:
                return Ending.STOPPED if self.stopping() else Ending.EXHAUSTED
            if proposal is None:
                time.sleep(pause)
                pause = min(2 * pause, 5.0, terms.lease / 4)

    def _proposal(self, terms: Terms, admission: Admission) -> tuple[Plan, str] | None:
        """Return a proposal that is within the measured limits.

        None when nothing is left to propose, or the study is asked to stop meanwhile.
        """
        history = patiently(self._recall.history, terms.lease)
        while True:
            history = replace(history, taken=history.taken | admission.refused())
            bits = self._next(history)
            if bits is None:
                return None
            plan = self.space.plan(bits)
            if not admission.problems(plan):
                return plan, "sampler"
            if self.stopping():  # measuring may take long
                return None

    def _next(self, history: History) -> Bits | None:
        """Return the sampler's proposal; None when nothing is left to propose.

        Workers with the same history would propose the same plan, and all but one in vain. One that
        has lost such races proposes what would come next, or after that, at random.
        """
        if self._sampler is None:
            return None
        bits = None
        for _ in range(1 + self._draw.randint(0, self._rivals)):
            try:
                bits = self._sampler.propose(history)
            except SpaceExhaustedError:
                break
            history = replace(history, taken=history.taken | {bits})
        return bits

    def _carry_out(
        self, row: Row, me: str, evaluate: Evaluate, lease: float, admission: Admission
    ) -> TrialRecord:
        """Evaluate a claimed plan and record what came out."""
        plan = Plan.parse(row.plan)
        with heartbeat(partial(self._ledger.extend, row.plan_hash, me, lease), lease):
            problems = _problems(self.space, plan) or admission.problems(plan)
            if problems:  # queued by another program, past `_checked`
                outcome = Outcome(None, "; ".join(problems))
            else:
                outcome = _measure(plan, row.source, evaluate)
        done = patiently(partial(self._ledger.record, row.plan_hash, me, outcome), lease)
        return trial_record(done)


def settled(
    space: Space,
    objective: Mapping[str, Any],
    seed: int,
    sampler: str = "circuit",
    prior: Prior | Mapping[str, float] | None = None,
    goal: Goal = "single",
) -> tuple[FeasibleSampler, dict[str, Any]]:
    """Return the sampler and the identity of a study with these settings; see `Study.open`.

    Raises:
        ConfigError: the sampler is unknown, or the prior incomplete.
        InfeasibleError: no legal student fits the budget.
    """
    known = Prior(prior) if isinstance(prior, Mapping) else prior
    proposing = _sampler(sampler, space, known, seed, goal)
    return proposing, study_identity(space, objective, seed, sampler, known, goal)


def _sampler(
    name: str, space: Space, prior: Prior | None, seed: int, goal: Goal
) -> FeasibleSampler:
    """Return the sampler of that name."""
    if name not in REGISTRY:
        raise ConfigError(choice_problem("search.sampler", name, list(REGISTRY)))
    return REGISTRY[name](space, prior, seed, goal)


def _problems(space: Space, plan: Plan) -> list[str]:
    """Describe why a plan is not feasible; empty when it is."""
    try:
        return space.problems(plan)
    except PlanError as error:
        return [str(error)]


def _measure(plan: Plan, source: str, evaluate: Evaluate) -> Outcome:
    """Evaluate a plan; a failed training is a result too."""
    try:
        measured = evaluate(plan, source)
    except TrainingError as error:
        return Outcome(None, str(error) or "training failed")
    if measured.plan_hash != plan.hash:
        raise DataError(
            f"Evaluation of plan {str(plan)!r}: got the measurement of plan {measured.plan!r}"
        )
    if measured.quality is None:
        raise DataError(
            f"Evaluation of plan {str(plan)!r}: got no quality, which the study maximises; "
            "evaluate must generate answers"
        )
    return Outcome(measured)
