"""Inputs refuse, before the database is reached, what it could not store or would refuse."""

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, ValidationError

from orchestration import models, records
from orchestration.records import Input, NewPolicyVersion, PolicyVersionRecord, Record

GOOD = {"id": "v1", "description": "first", "checksum": "0a" * 32, "created_by": "ops"}

HASHES = {
    "63 digits": "a" * 63,
    "65 digits": "a" * 65,
    "uppercase": "A" * 64,
    "no hex": "g" * 64,
    "a trailing newline": "a" * 64 + "\n",
    "a newline as the last digit": "a" * 63 + "\n",
    "a leading space": " " + "a" * 63,
    "other digits": "\N{FULLWIDTH DIGIT ONE}" * 64,
    "empty": "",
    "a prefix": "0x" + "a" * 62,
}


def classes(root: type[BaseModel]) -> list[type[BaseModel]]:
    return [child for found in root.__subclasses__() for child in (found, *classes(found))]


def refused_fields(**values: Any) -> list[str]:
    with pytest.raises(ValidationError) as raised:
        NewPolicyVersion(**(GOOD | values))
    located = [error["loc"] for error in raised.value.errors()]
    assert {len(loc) for loc in located} == {1}
    return [str(field) for (field,) in located]


def test_a_good_policy_version_is_taken_as_it_is() -> None:
    assert NewPolicyVersion(**GOOD).model_dump() == GOOD


def test_text_is_kept_to_the_letter() -> None:
    odd = " Zürich\n\t漢字 \N{GRINNING FACE} "
    assert NewPolicyVersion(**(GOOD | {"description": odd})).description == odd


@pytest.mark.parametrize("field", ["id", "description", "created_by"])
@pytest.mark.parametrize(
    "value",
    ["a\x00b", "\x00", "a\ud800", "\udfff", "\ud83d\ude00", "", None, 1, b"bytes"],
    ids=[
        *("a NUL in it", "a NUL", "a lone high surrogate", "a lone low surrogate"),
        *("surrogates in pair", "empty", "None", "a number", "bytes"),
    ],
)
def test_text_that_cannot_be_stored_is_refused_by_its_field(field: str, value: Any) -> None:
    assert refused_fields(**{field: value}) == [field]


@pytest.mark.parametrize("value", HASHES.values(), ids=HASHES.keys())
def test_a_checksum_that_is_no_sha256_in_lowercase_hex_is_refused(value: str) -> None:
    assert refused_fields(checksum=value) == ["checksum"]


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_refused_by_its_name(field: str) -> None:
    with pytest.raises(ValidationError) as raised:
        NewPolicyVersion(**{name: value for name, value in GOOD.items() if name != field})
    assert [error["loc"] for error in raised.value.errors()] == [(field,)]


def test_a_field_that_does_not_exist_is_refused_by_its_name() -> None:
    assert refused_fields(status="RETIRED") == ["status"]


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert refused_fields(id="", checksum="x", extra=1) == ["id", "checksum", "extra"]


@pytest.mark.parametrize("cls", classes(Input), ids=lambda cls: cls.__name__)
def test_every_input_is_frozen_takes_nothing_unknown_and_shows_nothing_it_refuses(
    cls: type[BaseModel],
) -> None:
    assert cls.model_config["frozen"] is True
    assert cls.model_config["extra"] == "forbid"
    assert cls.model_config["allow_inf_nan"] is False
    assert cls.model_config["hide_input_in_errors"] is True


@pytest.mark.parametrize("cls", classes(Record), ids=lambda cls: cls.__name__)
def test_every_record_is_frozen(cls: type[BaseModel]) -> None:
    assert cls.model_config["frozen"] is True


def test_an_input_does_not_change() -> None:
    new = NewPolicyVersion(**GOOD)
    with pytest.raises(ValidationError):
        new.id = "v2"
    assert hash(new) == hash(NewPolicyVersion(**GOOD))


def record() -> PolicyVersionRecord:
    now = datetime.now(UTC)
    return PolicyVersionRecord.from_row(
        GOOD
        | {
            "status": "GRACE",
            "activated_at": now,
            "grace_expires_at": now,
            "retired_at": None,
            "created_at": now,
            "db_user": "control",
            "xact_id": 7,
        }
    )


def test_a_record_is_made_of_the_rows_columns_and_does_not_change() -> None:
    made = record()
    assert (made.id, made.status, made.db_user) == ("v1", "GRACE", "control")
    with pytest.raises(ValidationError):
        made.status = "ACTIVE"


def test_a_record_survives_json() -> None:
    made = record()
    assert PolicyVersionRecord.model_validate_json(made.model_dump_json()) == made


def test_a_record_holds_the_types_that_it_declares() -> None:
    made = record()
    assert PolicyVersionRecord.model_validate(made.model_dump(), strict=True) == made


@pytest.mark.invariant("INV-API-003")
@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (records.NewInstruction, {"debtor_account", "creditor_account", "payload"}),
        (records.NewOutboxItem, {"payload"}),
        (records.ClaimedItem, {"payload"}),
        (records.NewAttestation, {"client_cert_fingerprint_sha256", "token_hash"}),
        (records.AttestationRecord, {"client_cert_fingerprint_sha256", "token_hash"}),
        (records.RevocationRecord, {"hash"}),
        (records.AuditLogRecord, {"before", "after"}),
    ],
)
def test_repr_hides_what_a_log_must_not_hold(model: type[BaseModel], hidden: set[str]) -> None:
    assert {name for name, field in model.model_fields.items() if not field.repr} == hidden


@pytest.mark.invariant("INV-API-003")
def test_no_model_shows_its_row_in_repr() -> None:
    assert models.Base.__repr__ is object.__repr__


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize(
    ("payload", "fits"),
    [
        ({"a": "x" * (1_000_000 - len('{"a": ""}'))}, True),
        ({"a": "x" * 1_000_000}, False),
        ({"a": "ä" * 500_000}, False),
        ({"a": ["x" * 1_000_000]}, False),
    ],
)
def test_a_payload_has_at_most_a_million_octets(payload: dict[str, Any], fits: bool) -> None:
    values = {
        "instruction_id": uuid4(),
        "participant_id": "p",
        "idempotency_key": "k",
        "rail_type": "SEPA",
        "payload": payload,
    }
    if fits:
        assert records.NewOutboxItem.model_validate(values).payload == payload
    else:
        with pytest.raises(ValidationError, match="1000000 octets"):
            records.NewOutboxItem.model_validate(values)


@pytest.mark.invariant("INV-API-001")
def test_a_free_text_may_be_longer_than_a_key() -> None:
    assert records.Completion(state="RETRYABLE", error_message="ä" * 2000).error_message
    for field, value in (("error_message", "x" * 4001), ("rail_reference", "x" * 1001)):
        with pytest.raises(ValidationError):
            records.Completion.model_validate({"state": "RETRYABLE", field: value})
