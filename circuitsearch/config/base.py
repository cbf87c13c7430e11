"""What all sections of a search file share: unknown keys are refused, values never change.

Numbers are strict: YAML's `yes` is no 1 and the text "300" is no 300, infinities and NaN are none
at all. Texts that name a file or a device hold something, and nothing that a path cannot hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from circuitsearch.core.errors import choice_problem

MOST = 10**9
"""Largest count that a search file may ask for; more is a slip, and would fill any memory."""


def _text(text: str) -> str:
    """Refuse a text that is blank or has control characters, which no path or name may hold."""
    if not text.strip():
        raise ValueError(f"got {text!r}, give a text that is not blank")
    if not text.isprintable():
        raise ValueError(f"got {text!r}, a text without control characters is allowed")
    return text


def _path(given: Any) -> Any:
    return _text(given) if isinstance(given, str) else given


def checked_names(what: str, names: list[str], allowed: list[str]) -> list[str]:
    """Return names that are all allowed and listed once; refuse others, all together."""
    faults = [choice_problem(what, name, allowed) for name in names if name not in allowed]
    faults += [f"{n} is listed twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    if faults:
        raise ValueError("; ".join(faults))
    return names


Share = Annotated[float, Field(gt=0, le=1, strict=True)]
Count = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Natural = Annotated[int, Field(ge=0, le=MOST, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, AfterValidator(_text)]
FilePath = Annotated[Path, BeforeValidator(_path)]


class Section(BaseModel):
    """One section of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
