"""Budgets: limits on the cost of a plan, in the words of the user and as exact integers.

A budget is any mix of limits; each names a quantity (parameters, MACs, measured latency, measured
memory), a scope, an accounting and a maximum. A share such as `31.25%` is taken of the whole
teacher in the *same* scope and accounting and rounded down, in exact rational arithmetic: 31.25 %
of 64 Mi is 20 Mi to the last digit.

Measured limits (`core.speed`) are in nanoseconds and bytes and stand under the accounting
`measured`. What a plan needs of them is known only once its student was measured; the functions
here take such figures handed in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from circuitsearch.core.amounts import parse_limit, shown
from circuitsearch.core.cost import (
    ACCOUNTINGS,
    QUANTITIES,
    SCOPES,
    Accounting,
    Cost,
    Generation,
    Quantity,
    Scope,
    cost,
)
from circuitsearch.core.errors import (
    ConfigError,
    choice_problem,
    integer_problems,
    raise_together,
)
from circuitsearch.core.files import record_fields
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import TeacherShape
from circuitsearch.core.speed import MEASURED, MEASURED_SCOPES, MeasuredQuantity

__all__ = ["LIMITED", "Budget", "Limit", "LimitSpec", "Limited", "parse_limit"]

Limited = Quantity | MeasuredQuantity
LIMITED: tuple[Limited, ...] = (*QUANTITIES, *MEASURED)
"""Everything that can be limited."""
Counting = Accounting | Literal["measured"]


@dataclass(frozen=True)
class LimitSpec:
    """A limit as the user writes it.

    Attributes:
        quantity: `parameters`, `macs`, `latency` or `memory`.
        limit: `31.25%`, `20M` (10^6), `20Mi` (2^20), `757G`, `1.5T` or an integer; of a latency
            `12ms`, `0.5s`; of memory `300MB`, `1.5GiB`.
        scope: `decoder`, `decoder+embeddings` or `total`; measured ones know the first and last.
        accounting: `paper` (the default) or `cached`; `measured` for latency and memory, which
            need not be said.
    """

    quantity: Limited
    limit: str | int
    scope: Scope = "decoder"
    accounting: Counting | None = None

    def __post_init__(self) -> None:
        """Fill in the accounting."""
        if self.accounting is None:
            counting = "measured" if self.measured else "paper"
            object.__setattr__(self, "accounting", counting)

    @property
    def measured(self) -> bool:
        """Whether it limits what only a measurement can tell."""
        return self.quantity in MEASURED

    @property
    def name(self) -> str:
        """Name of what is limited, e.g. `decoder parameters (paper)`."""
        return f"{self.scope} {self.quantity} ({self.accounting})"


@dataclass(frozen=True)
class Limit:
    """A limit with its maximum worked out.

    Attributes:
        quantity: `parameters`, `macs`, `latency` or `memory`.
        scope: `decoder`, `decoder+embeddings` or `total`.
        accounting: `paper` or `cached`; `measured` for latency and memory.
        maximum: largest allowed cost, inclusive; nanoseconds of a latency, bytes of memory.
        text: the limit as the user wrote it.
    """

    quantity: Limited
    scope: Scope
    accounting: Counting
    maximum: int
    text: str

    @property
    def measured(self) -> bool:
        """Whether it limits what only a measurement can tell."""
        return self.quantity in MEASURED

    @property
    def name(self) -> str:
        """Name of what is limited, e.g. `decoder parameters (paper)`."""
        return f"{self.scope} {self.quantity} ({self.accounting})"

    def used(self, spent: Cost) -> int:
        """Return how much of the limited quantity a cost (of the same accounting) uses.

        Raises:
            ConfigError: it is a measured limit, of which shapes say nothing.
        """
        if self.measured:
            raise ConfigError(f"{self.name}: shapes do not tell it; measure the student")
        part = spent.scopes[self.scope]
        return part.parameters if self.quantity == "parameters" else part.macs

    def shown(self, amount: int) -> str:
        """Return an amount of the limited quantity for people, e.g. `12.3 ms` or `20,971,520`."""
        return shown(self.quantity, amount)


@dataclass(frozen=True)
class Budget:
    """Limits that all hold at once.

    Attributes:
        limits: the limits; at most one per quantity, scope and accounting.
        generation: prompt length and passes that MACs are counted for.
    """

    limits: tuple[Limit, ...]
    generation: Generation = field(default_factory=Generation)

    def __post_init__(self) -> None:
        """Refuse two limits on the same thing."""
        object.__setattr__(self, "limits", tuple(self.limits))
        raise_together(_repeats([limit.name for limit in self.limits]), ConfigError, "Budget")

    @classmethod
    def resolve(
        cls,
        specs: Sequence[LimitSpec],
        shape: TeacherShape,
        generation: Generation | None = None,
        whole: Mapping[str, int] | None = None,
    ) -> Budget:
        """Work out the maximum of every limit for a teacher.

        Args:
            specs: the limits.
            shape: the teacher's sizes.
            generation: prompt length and passes; `Generation()` when None.
            whole: measured figures of the whole teacher by `Limit.name` (`Speed.amounts`), of
                which shares of measured limits are taken.

        Raises:
            ConfigError: lists every fault of every limit together.
        """
        generation = generation or Generation()
        problems = _repeats([spec.name for spec in specs])
        limits = []
        for spec in specs:
            faults = _word_problems(spec)
            try:
                share, amount = parse_limit(spec.limit, spec.quantity)
            except ConfigError as error:
                faults.append(str(error))
            else:
                if share and spec.measured and spec.name not in (whole or {}):
                    faults.append("a share of what is measured needs the teacher's own figure")
            if faults:
                problems.extend(f"{spec.name}: {fault}" for fault in faults)
                continue
            counting: Any = spec.accounting
            limit = Limit(spec.quantity, spec.scope, counting, 0, str(spec.limit))
            if share and spec.measured:
                amount *= (whole or {})[spec.name]
            elif share:
                full = Plan.full(shape.decoder.layers)
                amount *= limit.used(cost(full, shape, counting, generation))
            # Fraction floors exactly; a float would be off by one near round shares.
            limits.append(replace(limit, maximum=amount.numerator // amount.denominator))
        raise_together(problems, ConfigError, "Budget")
        return cls(tuple(limits), generation)

    @property
    def measured(self) -> tuple[Limit, ...]:
        """The limits on what only a measurement can tell."""
        return tuple(limit for limit in self.limits if limit.measured)

    def slack(
        self, plan: Plan, shape: TeacherShape, measured: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Return what is left of every limit, by `Limit.name`; negative where it is exceeded.

        Args:
            plan: the plan.
            shape: the teacher's sizes.
            measured: figures of its student by `Limit.name`; a measured limit that is not among
                them is left out.

        Raises:
            PlanError: the plan does not fit the decoder.
        """
        known = measured or {}
        spent: dict[Any, Cost] = {
            accounting: cost(plan, shape, accounting, self.generation)
            for accounting in ACCOUNTINGS
            if any(limit.accounting == accounting for limit in self.limits)
        }
        return {
            limit.name: limit.maximum
            - (known[limit.name] if limit.measured else limit.used(spent[limit.accounting]))
            for limit in self.limits
            if not limit.measured or limit.name in known
        }

    def admits(
        self, plan: Plan, shape: TeacherShape, measured: Mapping[str, int] | None = None
    ) -> bool:
        """Whether the plan stays within every limit (reaching a maximum is allowed).

        Args:
            plan: the plan.
            shape: the teacher's sizes.
            measured: see `slack`; measured limits without a figure are not looked at.
        """
        return all(left >= 0 for left in self.slack(plan, shape, measured).values())

    def exceeded(self, measured: Mapping[str, int]) -> list[str]:
        """Describe, with numbers, every measured limit that a student's figures exceed.

        Args:
            measured: figures of its student, one per measured limit, by `Limit.name`.

        Raises:
            ConfigError: a figure is missing.
        """
        missing = [limit.name for limit in self.measured if limit.name not in measured]
        raise_together([f"{name} was not measured" for name in missing], ConfigError, "Budget")
        return [
            f"{limit.name}: the student was measured at {limit.shown(measured[limit.name])}, the "
            f"limit {limit.text!r} allows {limit.shown(limit.maximum)}"
            for limit in self.measured
            if measured[limit.name] > limit.maximum
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the budget as nested JSON objects; `from_json` reads it back equal."""
        return {
            "limits": [asdict(limit) for limit in self.limits],
            "generation": asdict(self.generation),
        }

    @classmethod
    def from_json(cls, data: Any) -> Budget:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
            ConfigError: a value is not allowed.
        """
        values = record_fields(cls, data)
        limits = tuple(Limit(**record_fields(Limit, entry)) for entry in values["limits"])
        problems = [fault for limit in limits for fault in _word_problems(limit)]
        for limit in limits:
            problems += integer_problems("maximum", limit.maximum)
        raise_together(problems, ConfigError, "Budget")
        return cls(limits, Generation(**record_fields(Generation, values["generation"])))


def _word_problems(limit: LimitSpec | Limit) -> list[str]:
    """Describe the words of a limit that are not allowed ones."""
    words: list[tuple[str, Any, Sequence[str]]] = [("quantity", limit.quantity, LIMITED)]
    if limit.measured:
        words += [("scope", limit.scope, MEASURED_SCOPES)]
    else:
        words += [("scope", limit.scope, SCOPES), ("accounting", limit.accounting, ACCOUNTINGS)]
    problems = [
        choice_problem(what, got, allowed) for what, got, allowed in words if got not in allowed
    ]
    if limit.measured and limit.accounting != "measured":
        problems.append(
            f"accounting: got {limit.accounting!r}, a measured {limit.quantity} has none; leave it "
            "out"
        )
    return problems


def _repeats(names: Sequence[str]) -> list[str]:
    """Describe things that are limited more than once."""
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return [f"{name} is limited {names.count(name)} times; keep one" for name in repeated]
