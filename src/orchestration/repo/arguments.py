"""Checks the arguments of repository methods and converts them for the database."""

import json
from collections.abc import Iterable, Mapping, Sequence
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
# The range of the parameter's type. The database checks the bounds of the argument.
COUNT: Final[TypeAdapter[int]] = TypeAdapter(
    Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
)
DURATION: Final[TypeAdapter[timedelta]] = TypeAdapter(
    Annotated[timedelta, Field(strict=True, ge=timedelta(days=-(10**8)), le=timedelta(days=10**8))]
)
WRONG_TYPES: Final[Mapping[str, str]] = {
    "string_type": "str",
    "int_type": "int",
    "uuid_type": "UUID",
    "time_delta_type": "timedelta",
    "datetime_type": "datetime",
}
"""pydantic's errors about the Python type of a value, and the type that they expect."""


def dump_json(value: object) -> str:
    """Encode JSON for jsonb. NaN and the infinities are rejected: JSON cannot represent them."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))


def dump_inputs(name: str, batch: TypeAdapter[list[M]], inputs: list[M]) -> str:
    """Return the batch as JSON. Raises pydantic.ValidationError if a payload was changed after its
    check and now contains a value that JSON or PostgreSQL cannot represent."""
    try:
        dumped = batch.dump_json(inputs, warnings="error").decode()
    except (TypeError, ValueError):
        dumped = None
    # Check outside of the handler: the exception's context could show the value.
    if dumped is None or "\\u0000" in dumped:
        _check_again(name, inputs)
    return dumped if dumped is not None else dump_json([_dumped(one) for one in inputs])


def _dumped(one: BaseModel) -> dict[str, Any]:
    """Return the fields of an input with its objects as they are. pydantic dumps an object only to
    a depth of about 250 levels, and an input can have 500."""
    objects: dict[str, object] = {name: value for name, value in one if isinstance(value, dict)}
    return one.model_dump(mode="json", exclude=set(objects)) | objects


def _check_again(name: str, inputs: Sequence[BaseModel]) -> None:
    for index, one in enumerate(inputs):
        try:
            type(one).model_validate(dict(one))
        except ValidationError as error:
            raise _naming(error, name, index) from None


def argument(name: str, adapter: TypeAdapter[T], value: object) -> T:
    """Validate an argument that is not a model, and return it converted.

    Raises TypeError if its Python type is wrong, and pydantic.ValidationError if its content is
    wrong. Both name the argument and do not show the value.
    """
    refusal: Exception
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        refusal = _wrong_type(name, error, value) or _naming(error, name)
    # Raise outside of the handler: the exception's context would show the value.
    raise refusal


def instances(name: str, kind: type[T], values: object) -> list[T]:
    """Return a batch of inputs or records as a list. Raises TypeError if one has another class."""
    given = values
    if isinstance(values, str | bytes | Mapping | BaseModel) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a batch of {kind.__name__}, got {kind_of(given)}")
    found = list(cast("Iterable[T]", values))
    for index, one in enumerate(found):
        instance(f"{name}[{index}]", kind, one)
    return found


def instance(name: str, kind: type[T], value: T) -> T:
    """Return an argument that must be an instance of this class. Raises TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(_expected(name, kind.__name__, value))
    return value


def kind_of(value: object) -> str:
    return type(value).__name__


def _expected(name: str, kind: str, value: object) -> str:
    article = "an" if kind[0] in "AEIOaeio" else "a"
    return f"{name}: expected {article} {kind}, got {kind_of(value)}"


def _wrong_type(name: str, error: ValidationError, value: object) -> TypeError | None:
    kind = error.errors(include_url=False, include_context=False, include_input=False)[0]["type"]
    # For a StrEnum every str has the right type. An unknown value is wrong content.
    if kind == "enum" and not isinstance(value, str):
        kind = "string_type"
    expected = WRONG_TYPES.get(kind)
    return TypeError(_expected(name, expected, value)) if expected is not None else None


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
