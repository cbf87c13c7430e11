"""Amounts as people write them: shares, counts, durations, sizes, in exact rational arithmetic.

Units tell decimal from binary thousands, because the literature mixes them: `20M` is 20,000,000
and `20Mi` is 20,971,520; `300MB` is 300,000,000 bytes and `1.5GiB` is 1,610,612,736.
"""

from __future__ import annotations

import re
from fractions import Fraction

from circuitsearch.core.errors import ConfigError, nearest
from circuitsearch.core.speed import MEASURED

__all__ = ["parse_limit", "shown"]

_AMOUNT = re.compile(r"([0-9][0-9_]{0,29}(?:\.[0-9]{1,30})?)\s*([A-Za-z%]*)")
_UNITS: dict[str, int] = {
    "": 1,
    **{name: 1000**power for power, name in enumerate("kMGT", start=1)},
    **{f"{name}i": 1024**power for power, name in enumerate("KMGT", start=1)},
}
_FORMS = (
    "a share (31.25%), a number with unit k M G T (20M, 1.5T) or Ki Mi Gi Ti (20Mi), an integer"
)
# Measured amounts need their unit: a bare 12 could be seconds as well as milliseconds.
_MEASURED_UNITS: dict[str, dict[str, int]] = {
    "latency": {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9},
    "memory": {
        "B": 1,
        **{f"{name}B": 1000**power for power, name in enumerate("kMGT", start=1)},
        **{f"{name}iB": 1024**power for power, name in enumerate("KMGT", start=1)},
    },
}
_MEASURED_FORMS = {
    "latency": "a share (80%), a number with unit ns us ms s (12ms, 0.5s)",
    "memory": "a share (80%), a number with unit B kB MB GB TB or KiB MiB GiB TiB (300MB, 1.5GiB)",
}


def parse_limit(limit: str | int, quantity: str = "parameters") -> tuple[bool, Fraction]:
    """Read a limit; return whether it is a share of the teacher, and the share or the amount.

    Args:
        limit: as the user wrote it.
        quantity: what it limits; amounts of latency are nanoseconds, of memory bytes.

    Raises:
        ConfigError: the text has none of the allowed forms, or the share exceeds 100 %.
    """
    measured = quantity in MEASURED
    forms = _MEASURED_FORMS[quantity] if measured else _FORMS
    units = _MEASURED_UNITS[quantity] if measured else _UNITS
    if isinstance(limit, int) and not isinstance(limit, bool) and not measured:
        if limit < 0:
            raise ConfigError(f"got {limit}, allowed are {forms}, none negative")
        return False, Fraction(limit)
    found = _AMOUNT.fullmatch(limit.strip()) if isinstance(limit, str) else None
    if found is None:
        raise ConfigError(f"got {limit!r}, allowed are {forms}")
    number, unit = Fraction(found[1].replace("_", "")), found[2]
    if unit == "%":
        if number > 100:
            raise ConfigError(f"got {limit!r}, a share of the teacher is at most 100%")
        return True, number / 100
    if unit not in units:
        guess = nearest(unit, [name for name in units if name])
        hint = f"; did you mean {found[1]}{guess}?" if guess else ""
        raise ConfigError(f"got {limit!r} with unit {unit!r}, allowed are {forms}{hint}")
    return False, number * units[unit]


def shown(quantity: str, amount: int) -> str:
    """Return an amount for people: `12.3 ms`, `1.5 GB`, and counts in full, `20,971,520`."""
    steps = {
        "latency": ((10**9, "s"), (10**6, "ms"), (10**3, "us"), (1, "ns")),
        "memory": ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"), (1, "B")),
    }.get(quantity)
    if steps is None:
        return f"{amount:,}"
    size, unit = next((step for step in steps if abs(amount) >= step[0]), steps[-1])
    return f"{amount / size:.4g} {unit}"
