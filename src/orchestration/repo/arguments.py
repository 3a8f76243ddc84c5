"""What is given to a repository: checked before it reaches the database, written for the wire."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Final, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from orchestration.records import Key, Reason, Text, Word

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

KEY: Final[TypeAdapter[str]] = TypeAdapter(Key)
KEY_OR_NONE: Final[TypeAdapter[str | None]] = TypeAdapter(Key | None)
REASON: Final[TypeAdapter[str]] = TypeAdapter(Reason)
WORD: Final[TypeAdapter[str]] = TypeAdapter(Word)
TEXT_OR_NONE: Final[TypeAdapter[str | None]] = TypeAdapter(Text | None)
ID: Final[TypeAdapter[UUID]] = TypeAdapter(UUID)
# What the wire carries; which of it is in bounds is for the database to say.
COUNT: Final[TypeAdapter[int]] = TypeAdapter(
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
)
DURATION: Final[TypeAdapter[timedelta]] = TypeAdapter(
    Annotated[timedelta, Field(strict=True, ge=timedelta(days=-(10**8)), le=timedelta(days=10**8))]
)


def dump_json(value: object) -> str:
    """JSON as jsonb takes it; refuses NaN and the infinities, which JSON does not know."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def dump_inputs(name: str, inputs: Sequence[M], shape: Callable[[M], dict[str, Any]]) -> str:
    """The batch as JSON. Raises pydantic.ValidationError for a payload that was changed, after it
    had been checked, into what JSON or PostgreSQL does not know."""
    try:
        dumped = dump_json([shape(one) for one in inputs])
        dumped.encode()
    except (TypeError, ValueError, RecursionError):
        _check_again(name, inputs)
        raise
    if "\\u0000" in dumped:
        _check_again(name, inputs)
    return dumped


def _check_again(name: str, inputs: Sequence[BaseModel]) -> None:
    for index, one in enumerate(inputs):
        try:
            type(one).model_validate(dict(one))
        except ValidationError as error:
            raise _naming(error, name, index) from None


def argument(name: str, adapter: TypeAdapter[T], value: object) -> T:
    """An argument that is no model, as its type wants it.

    Raises pydantic.ValidationError, which names it and does not show the value.
    """
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        refusal = _naming(error, name)
    # Raised out here, so that what shows the value does not hang on it as its context.
    raise refusal


def instances(name: str, kind: type[T], values: object) -> list[T]:
    """A batch of inputs or records, each of its kind. Raises pydantic.ValidationError."""
    given = values
    if isinstance(values, str | bytes | Mapping | BaseModel) or not isinstance(values, Iterable):
        raise _refusal(name, f"it is a {kind_of(given)}, no batch", name)
    found = list(cast("Iterable[T]", values))
    for index, one in enumerate(found):
        if not isinstance(one, kind):
            reason = f"it is a {kind_of(one)}, no {kind.__name__}"
            raise _refusal(name, reason, name, index)
    return found


def instance(name: str, kind: type[T], value: T) -> T:
    """An argument that is a model of its kind. Raises pydantic.ValidationError."""
    if not isinstance(value, kind):
        reason = f"it is a {kind_of(value)}, no {kind.__name__}"
        raise _refusal(name, reason, name)
    return value


def kind_of(value: object) -> str:
    return type(value).__name__


def _refusal(title: str, reason: str, *at: str | int) -> ValidationError:
    kind = PydanticCustomError("wrong_type", cast("Any", reason))
    return ValidationError.from_exception_data(
        title, [InitErrorDetails(type=kind, loc=at, input=None)], hide_input=True
    )


def _naming(error: ValidationError, *at: str | int) -> ValidationError:
    details = [
        InitErrorDetails(
            type=PydanticCustomError(cast("Any", one["type"]), cast("Any", one["msg"])),
            loc=(*at, *one["loc"]),
            input=None,
        )
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return ValidationError.from_exception_data(str(at[0]), details, hide_input=True)


def microseconds(value: timedelta) -> str:
    """An interval as PostgreSQL reads it: elapsed time, since a day may have 23 to 25 hours."""
    return f"{value // timedelta(microseconds=1)} microseconds"
