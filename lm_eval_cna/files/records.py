"""A base class for the contents of files, and pydantic's first error as a sentence."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError


class Record(BaseModel):
    """Immutable contents of a file; unknown keys, wrong types and non-finite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class AnalysisRecord(BaseModel):
    """A frozen result: unknown keys are errors, and an infinite value, such as a perplexity, is read back from JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class FieldError(NamedTuple):
    """The first error that pydantic found; `str` gives a sentence without its full stop."""

    field: str
    """Dotted name of the field; empty if the error concerns the whole record."""
    message: str
    """What is wrong with it."""
    got: Any
    """The value that was given; None if it is missing or the message already shows it."""
    kind: str
    """Pydantic's name for the error."""
    others: int
    """How many more errors there are."""

    def __str__(self) -> str:
        more = f" (and {self.others} more)" if self.others else ""
        return f"{self.field}{': ' if self.field else ''}{self.message}{more}"


def first_error(error: ValidationError) -> FieldError:
    """Pick the first of pydantic's errors.

    Example:
        >>> from pydantic import TypeAdapter
        >>> try:
        ...     TypeAdapter(dict[str, int]).validate_python({"seed": "one"}, strict=True)
        ... except ValidationError as error:
        ...     print(first_error(error))
        seed: Input should be a valid integer
    """
    first, *rest = error.errors(include_url=False)
    return FieldError(
        field=".".join(map(str, first["loc"])),
        message=first["msg"].removeprefix("Value error, "),
        got=None if first["type"] in ("missing", "value_error") else first["input"],
        kind=first["type"],
        others=len(rest),
    )
