"""An input either works, or is rejected before the database is reached, with the name of its
field."""

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy.orm import Session

from orchestration.records import NewOutboxItem
from orchestration.repo import OutboxRepository
from tests.support import Connect, authorize_instructions, new_instruction_id

pytestmark = pytest.mark.instructed

Sessions = Callable[[str], Session]

MINUTE = timedelta(minutes=1)


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Plain(Enum):
    X = "x"


def label(value: object) -> str:
    """A short ASCII representation. An integer can be too long to print."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"{value.bit_length()} bits"
    return "object" if type(value) is object else ascii(value)[:25]


def new(**changed: Any) -> NewOutboxItem:
    values: dict[str, Any] = {
        "instruction_id": new_instruction_id(),
        "participant_id": "bank-a",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": {},
    }
    return NewOutboxItem(**(values | changed))


def instructed(owner: Connect, item: NewOutboxItem) -> NewOutboxItem:
    """The item, with an instruction of its participant, whatever the participant's name is."""
    instruction_id = uuid4()
    authorize_instructions(owner, [(instruction_id, item.participant_id)])
    return item.model_copy(update={"instruction_id": instruction_id})


def refusal(**changed: Any) -> tuple[str, str]:
    """Return the rejected field and the reason."""
    with pytest.raises(ValidationError) as raised:
        new(**changed)
    (error,) = raised.value.errors()
    (field,) = error["loc"]
    return str(field), error["msg"]


@pytest.fixture
def outbox(session: Sessions) -> OutboxRepository:
    return OutboxRepository(session("executor"))


def there_and_back(outbox: OutboxRepository, payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload that a claim returns."""
    outbox.enqueue(new(payload=payload, idempotency_key=str(uuid4())))
    (claimed,) = outbox.claim("w", batch_size=1, lease=MINUTE)
    return claimed.payload


def nested(depth: int, leaf: object = 1) -> dict[str, Any]:
    value: object = leaf
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


def levels(value: object) -> int:
    depth = 0
    while isinstance(value, dict | list):
        value = next(iter(value.values() if isinstance(value, dict) else value))
        depth += 1
    return depth


# Depth.


@pytest.mark.parametrize("depth", [1, 100, 500])
def test_a_payload_may_be_nested(outbox: OutboxRepository, depth: int) -> None:
    assert levels(there_and_back(outbox, nested(depth))) == depth


@pytest.mark.parametrize("depth", [501, 1_000, 100_000])
def test_a_payload_nested_too_deep_is_refused_naming_the_place(depth: int) -> None:
    field, why = refusal(payload=nested(depth))
    assert field == "payload"
    assert "payload.a" in why
    assert "deep" in why


def test_a_payload_that_holds_itself_is_refused() -> None:
    payload: dict[str, Any] = {}
    payload["self"] = [payload]
    field, why = refusal(payload=payload)
    assert field == "payload"
    assert "payload.self[0].self" in why


# Values that JSON cannot represent.


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a\x00b", "NUL"),
        ("\ud800", "lone surrogate"),
        ("\udfff!", "lone surrogate"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (datetime(2026, 1, 1, tzinfo=UTC), "datetime"),
        (date(2026, 1, 1), "date"),
        (timedelta(1), "timedelta"),
        (Decimal("1.10"), "Decimal"),
        (UUID(int=1), "UUID"),
        (b"bytes", "bytes"),
        ({1, 2}, "set"),
        (Plain.X, "Plain"),
        (object(), "object"),
        (10**2_000, "integer"),
        (-(2**400_000), "integer"),
        ({1: "x"}, "key 1"),
        ({None: "x"}, "key None"),
        ({True: "x"}, "key True"),
        ({("a",): "x"}, "key"),
        ({"a\x00": "x"}, "NUL"),
        ({"\ud800": "x"}, "lone surrogate"),
    ],
    ids=label,
)
@pytest.mark.parametrize("place", ["at the top", "deep"])
def test_a_value_that_json_or_postgresql_cannot_hold_is_refused_at_its_place(
    value: object, why: str, place: str
) -> None:
    payload = {"ok": 1, "x": value}
    path = "payload.x"
    if place == "deep":
        payload = {"list": [0, {"ok": None, "x": [True, value]}]}
        path = "payload.list[1].x[1]"
    field, told = refusal(payload=payload)
    assert field == "payload"
    assert path in told
    assert why in told


@pytest.mark.parametrize("key", [1, None, 1.5, True, b"a", ("a",)], ids=repr)
def test_a_key_of_the_payload_that_is_no_string_is_refused(key: object) -> None:
    field, why = refusal(payload={key: 1})
    assert field == "payload"
    assert repr(key) in why


@pytest.mark.parametrize(
    "payload",
    [None, [], [1], "{}", "text", 1, True, b"{}", object()],
    ids=lambda one: repr(one)[:9],
)
def test_a_payload_that_is_no_object_is_refused(payload: object) -> None:
    assert refusal(payload=payload)[0] == "payload"


# What it does know.


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"": ""},
        {"a": [], "b": {}, "c": [[], {}, None, True, False, 0, -1]},
        {"long": "é" * 400_000},
        {"a" * 900_000: 1},
        {"emoji": "😀👩‍👩‍👧‍👦🏳️‍🌈", "𝒳": "\U0010ffff", "combining": "é", "rtl": "\u202eabc"},
        {"quotes": "'\"\\ \\u0000 %s %(x)s :name {} $1", ":a": "::text"},
        {"controls": "".join(map(chr, range(1, 32))) + "\x7f\x85\u2028\ufeff\ufffe"},
        {"integers": [2**53 + 1, 2**63, 2**64, -(2**100), 10**1_000, -(10**1_000)]},
        {"floats": [0.1, -0.0, 1.5e300, 5e-324, 1.7976931348623157e308, 2.5]},
        {str(n): n for n in range(10_000)},
        {"__proto__": 1, "constructor": None},
    ],
    ids=label,
)
def test_a_payload_comes_out_as_it_went_in(
    outbox: OutboxRepository, payload: dict[str, Any]
) -> None:
    assert same(there_and_back(outbox, payload), payload)


def test_a_payload_is_kept_as_json_keeps_it(outbox: OutboxRepository) -> None:
    payload = {"tuple": (1, (2,)), "enums": [Colour.RED, Number.ONE], "float": 1.0}
    found = there_and_back(outbox, payload)
    assert found == {"tuple": [1, [2]], "enums": ["red", 1], "float": 1.0}
    assert type(found["float"]) is float


def same(found: object, given: object) -> bool:
    """Compare values. A float with many digits can come back as the integer that jsonb printed."""
    if isinstance(given, float):
        return isinstance(found, int | float) and float(found) == given
    if isinstance(given, dict):
        return (
            isinstance(found, dict)
            and found.keys() == given.keys()
            and all(same(found[key], value) for key, value in given.items())
        )
    if isinstance(given, list):
        return isinstance(found, list) and len(found) == len(given) and all(map(same, found, given))
    return type(found) is type(given) and found == given


characters = st.characters(exclude_characters="\x00", exclude_categories=("Cs",))
texts = st.text(characters, max_size=12)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(texts, children, max_size=4),
    max_leaves=12,
)


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(payload=st.dictionaries(texts, values, max_size=5))
def test_any_json_object_goes_in_and_comes_out_equal(
    outbox: OutboxRepository, payload: dict[str, Any]
) -> None:
    assert same(there_and_back(outbox, payload), payload)


# The other fields.


@pytest.mark.parametrize("field", ["participant_id", "idempotency_key", "rail_type"])
@pytest.mark.parametrize(
    "value",
    ["", "a\x00", "\ud800", None, 1, b"bytes", ["a"]],
    ids=["empty", "a NUL", "a surrogate", "None", "a number", "bytes", "a list"],
)
def test_a_key_that_cannot_be_one_is_refused_by_its_field(field: str, value: object) -> None:
    assert refusal(**{field: value})[0] == field


@pytest.mark.parametrize("field", ["participant_id", "idempotency_key", "rail_type"])
@pytest.mark.parametrize(
    "value",
    ["'; DROP SCHEMA orchestration; --", "😀", " ", "a\nb", "%s", ":x", "Ünïcode/é", "\U0010ffff"],
)
def test_a_key_is_kept_to_the_letter(
    outbox: OutboxRepository, owner: Connect, field: str, value: str
) -> None:
    made = outbox.enqueue(instructed(owner, new(**{field: value})))
    assert getattr(made, field) == value
    (claimed,) = outbox.claim("w", batch_size=1, lease=MINUTE)
    assert getattr(claimed, field) == value


def unlike(length: int) -> str:
    """Text that cannot be compressed."""
    state, found = 1, []
    for _ in range(length):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        found.append(chr(33 + (state >> 33) % 90))
    return "".join(found)


@pytest.mark.parametrize("field", ["participant_id", "idempotency_key", "rail_type"])
@pytest.mark.parametrize("length", [200, 1_000, 3_000, 10_000, 1_000_000])
def test_a_long_key_works_or_is_refused_by_its_field(
    outbox: OutboxRepository, owner: Connect, field: str, length: int
) -> None:
    value = unlike(length)
    refused: list[tuple[Any, ...]] = []
    try:
        item = new(**{field: value})
    except ValidationError as error:
        refused = [one["loc"] for one in error.errors()]
    if refused:
        assert refused == [(field,)]
        assert length > 200
    else:
        assert getattr(outbox.enqueue(instructed(owner, item)), field) == value


@pytest.mark.parametrize("value", ["no uuid", None, 1, "", "0" * 31])
def test_an_instruction_id_that_is_no_uuid_is_refused(value: object) -> None:
    assert refusal(instruction_id=value)[0] == "instruction_id"


def test_an_instruction_id_may_be_written_out(outbox: OutboxRepository, owner: Connect) -> None:
    id = UUID(int=2**128 - 1)
    authorize_instructions(owner, [(id, "bank-a")])
    assert outbox.enqueue(new(instruction_id=str(id))).instruction_id == id


@pytest.mark.parametrize("value", [0, -1, 1_001, 2**40, 1.5, "3", True, None])
def test_max_attempts_out_of_bounds_is_refused(value: object) -> None:
    assert refusal(max_attempts=value)[0] == "max_attempts"


@pytest.mark.parametrize("value", [1, 20, 1_000])
def test_max_attempts_within_bounds_is_kept(outbox: OutboxRepository, value: int) -> None:
    assert outbox.enqueue(new(max_attempts=value)).max_attempts == value


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1),
        datetime.max,
        datetime.max.replace(tzinfo=timezone(-timedelta(hours=1))),
        datetime.max.replace(year=9998, tzinfo=UTC),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        "2026-01-01T00:00:00",
        "infinity",
        "soon",
    ],
    ids=str,
)
def test_a_due_at_that_is_naive_or_out_of_range_is_refused(value: object) -> None:
    assert refusal(due_at=value)[0] == "due_at"


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 1, 1, 1, 2, 3, 4, tzinfo=timezone(timedelta(hours=14))),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30, seconds=7))),
        datetime(2026, 1, 1, tzinfo=timezone(-timedelta(hours=23, minutes=59))),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=16))),
        datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1, microseconds=1))),
        datetime.min.replace(tzinfo=UTC),
        datetime(1, 1, 1, 12, tzinfo=timezone(timedelta(hours=1))),
    ],
    ids=str,
)
def test_a_due_at_is_kept_to_the_microsecond(outbox: OutboxRepository, value: datetime) -> None:
    made = outbox.enqueue(new(due_at=value))
    status = outbox.get(made.outbox_id)
    assert status is not None
    assert status.next_attempt_at == value


def test_a_due_at_is_at_most_400_days_ahead(outbox: OutboxRepository) -> None:
    now = datetime.now(UTC)
    assert refusal(due_at=now + timedelta(days=400, minutes=1))[0] == "due_at"
    outbox.enqueue(new(due_at=now + timedelta(days=399, hours=23)))


def test_a_field_that_does_not_exist_is_refused() -> None:
    assert refusal(sequence_id=1)[0] == "sequence_id"


@pytest.mark.parametrize("size", [0, 1, 10_000])
def test_a_batch_of_any_size_up_to_ten_thousand_works(outbox: OutboxRepository, size: int) -> None:
    made = outbox.enqueue_many(
        [new(idempotency_key=f"k{n}", payload={"n": n, "s": "é"}) for n in range(size)]
    )
    assert [one.sequence_id for one in made] == list(range(1, size + 1))


@pytest.mark.parametrize("worker_id", ["😀", "a" * 1000, "'; --", " "], ids=lambda s: s[:5])
def test_a_worker_may_be_called_anything(outbox: OutboxRepository, worker_id: str) -> None:
    outbox.enqueue(new())
    (claimed,) = outbox.claim(worker_id, batch_size=1, lease=MINUTE)
    assert claimed.worker_id == worker_id
