"""Speed: how long a student really takes and how much memory it really needs, on one machine.

Parameters and MACs follow from shapes; these figures do not, so they are measured
(`students.speed`), for batch 1 and exactly the generation that MACs are counted for. They are
integers, nanoseconds and bytes, so that limits on them compare exactly like all others. A figure
belongs to the machine in `where`: on another one it says nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from circuitsearch.core.cost import Generation
from circuitsearch.core.errors import DataError, integer_problems, raise_together
from circuitsearch.core.files import record_fields

__all__ = [
    "MEASURED",
    "MEASURED_SCOPES",
    "MeasuredQuantity",
    "Speed",
    "measured_name",
]

MeasuredQuantity = Literal["latency", "memory"]
MEASURED: tuple[MeasuredQuantity, ...] = get_args(MeasuredQuantity)
"""Quantities that are measured: seconds of one generation, highest number of bytes during it."""
MEASURED_SCOPES = ("decoder", "total")
"""What is measured: the decoder on given encoder states (embeddings and readout run with it), or
the encoder too."""

_TIMES = ("first_token", "per_token", "decoding", "encoding")
_SIZES = ("decoder_memory", "total_memory")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one plan's student takes for one page and one answer.

    Attributes:
        plan: canonical text of the plan.
        plan_hash: hash of that text.
        first_token: nanoseconds of the pass over the prompt, keys and values of the page included.
        per_token: mean nanoseconds of a further pass; 0 when there is none.
        decoding: nanoseconds of all passes.
        encoding: nanoseconds of the encoder, once per page.
        decoder_memory: highest sum of bytes of live tensors while decoding, weights and encoder
            states included, the encoder's own weights not.
        total_memory: the same with the encoder's weights, while encoding and decoding.
        generation: prompt length and passes.
        where: device and threads that it was measured with.
    """

    plan: str
    plan_hash: str
    first_token: int
    per_token: int
    decoding: int
    encoding: int
    decoder_memory: int
    total_memory: int
    generation: Generation = field(default_factory=Generation)
    where: str = ""

    def __post_init__(self) -> None:
        """Refuse figures that are no integers from 0, all together."""
        problems = [
            fault
            for name in _TIMES + _SIZES
            for fault in integer_problems(name, getattr(self, name))
        ]
        raise_together(problems, DataError, f"Speed of plan {self.plan!r}")

    def amounts(self) -> dict[str, int]:
        """Return what limits compare, by `Limit.name`: nanoseconds and bytes."""
        return {
            measured_name("latency", "decoder"): self.decoding,
            measured_name("latency", "total"): self.encoding + self.decoding,
            measured_name("memory", "decoder"): self.decoder_memory,
            measured_name("memory", "total"): self.total_memory,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; `from_json` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Speed:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown, or a figure is impossible.
            ConfigError: the generation is impossible.
        """
        values = record_fields(cls, data)
        if "generation" in values:
            values["generation"] = Generation(**record_fields(Generation, values["generation"]))
        return cls(**values)


def measured_name(quantity: str, scope: str) -> str:
    """Return the name of a measured figure, e.g. `decoder latency (measured)`."""
    return f"{scope} {quantity} (measured)"
