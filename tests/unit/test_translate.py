"""The translation of a driver's error: by SQLSTATE, then by constraint, never by the text."""

import pickle
import re
import traceback

import psycopg
import pytest
from psycopg.pq import DiagnosticField
from tests.support import Connect

from orchestration import errors
from orchestration.invariants import BY_NATIVE_CONSTRAINT
from orchestration.translate import SCHEMA_CODES, is_ours, translate, translate_in_call

FIELDS = {
    "message": DiagnosticField.MESSAGE_PRIMARY,
    "schema": DiagnosticField.SCHEMA_NAME,
    "table": DiagnosticField.TABLE_NAME,
    "column": DiagnosticField.COLUMN_NAME,
    "constraint": DiagnosticField.CONSTRAINT_NAME,
    "detail": DiagnosticField.MESSAGE_DETAIL,
    "hint": DiagnosticField.MESSAGE_HINT,
}


def server_says(
    sqlstate: str, *, cls: type[psycopg.Error] = psycopg.DatabaseError, **fields: str
) -> psycopg.Error:
    """The driver's error for a refusal of these fields."""
    info = {FIELDS[name]: value.encode() for name, value in fields.items()}
    return cls("text of the driver", info={DiagnosticField.SQLSTATE: sqlstate.encode()} | info)


def raised_by(connection: Connect, statement: str) -> psycopg.Error:
    """The driver's error for what a real server raises when it runs this PL/pgSQL statement."""
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(f"DO $do$ BEGIN {statement}; END $do$")
    return raised.value


@pytest.mark.parametrize("code", errors.BY_SQLSTATE)
@pytest.mark.parametrize(
    "cls", [psycopg.ProgrammingError, psycopg.OperationalError, psycopg.DatabaseError]
)
def test_the_class_follows_from_the_code_and_not_from_the_drivers_class(
    code: str, cls: type[psycopg.Error]
) -> None:
    typed = translate(server_says(code, cls=cls))
    assert type(typed) is errors.BY_SQLSTATE[code]
    assert typed.sqlstate == code


def test_everything_the_server_said_is_kept() -> None:
    typed = translate(
        server_says(
            "P7101",
            message="INV-POL-002: RETIRED is final",
            schema="orchestration",
            table="policy_versions",
            column="status",
            constraint="INV-POL-002",
            detail='{"id": "v1", "tries": 3, "rest": null}',
            hint="Enter a new version.",
        )
    )
    assert type(typed) is errors.InvalidPolicyTransition
    assert str(typed) == "INV-POL-002: RETIRED is final"
    assert vars(typed) == {
        "sqlstate": "P7101",
        "invariant": "INV-POL-002",
        "schema": "orchestration",
        "table": "policy_versions",
        "column": "status",
        "constraint": "INV-POL-002",
        "detail": {"id": "v1", "tries": 3, "rest": None},
        "hint": "Enter a new version.",
    }


@pytest.mark.parametrize("code", ["99999", "XX000", "42P01", "P7999", "22015"])
def test_a_code_without_a_class_stays_unclassified_with_everything_kept(code: str) -> None:
    typed = translate(server_says(code, message="who knows", table="t", hint="look"))
    assert type(typed) is errors.UnclassifiedDatabaseError
    assert (typed.sqlstate, str(typed), typed.table, typed.hint) == (code, "who knows", "t", "look")


def test_wording_decides_nothing() -> None:
    typed = translate(server_says("99999", message="duplicate key value; connection lost; P7101"))
    assert type(typed) is errors.UnclassifiedDatabaseError


@pytest.mark.parametrize(
    "text",
    ["Key (id)=(v1) already exists.", "{not json", '["a", "list"]', "{}x", '"{}"', ""],
)
def test_a_detail_in_the_servers_words_stands_under_text(text: str) -> None:
    assert translate(server_says("23505", detail=text)).detail == {"text": text}


@pytest.mark.invariant("INV-API-003")
@pytest.mark.parametrize("code", ["23514", "23502"])
def test_the_row_of_a_failing_check_is_dropped(code: str) -> None:
    error = server_says(code, message="violates", detail="Failing row contains (DE02, salt).")
    error.args = ("violates\nDETAIL:  Failing row contains (DE02, salt).",)
    typed = translate(error)
    assert typed.detail is None
    typed.__cause__ = error
    assert "DE02" not in "".join(traceback.format_exception(typed))
    assert b"DE02" not in pickle.dumps(typed)


def test_no_detail_is_none_and_an_empty_one_is_empty() -> None:
    assert translate(server_says("P7102")).detail is None
    assert translate(server_says("P7102", detail="{}")).detail == {}


@pytest.mark.parametrize(
    ("code", "constraint", "cls", "invariant"),
    [
        ("23505", "uq_policy_versions_active", errors.ActivePolicyRace, "INV-POL-005"),
        ("23505", "uq_policy_versions_grace", errors.UniqueViolation, "INV-POL-008"),
        ("23505", "uq_somebody_elses", errors.UniqueViolation, None),
        (
            "23505",
            "uq_instructions_participant_id_idempotency_key",
            errors.UniqueViolation,
            "INV-INS-003",
        ),
        (
            "23503",
            "fk_payment_outbox_pending_participant_id_instruction_id_open",
            errors.InstructionStateRace,
            "INV-INS-006",
        ),
        (
            "23503",
            "fk_status_history_participant_id_instruction_id",
            errors.ForeignKeyViolation,
            "INV-INS-004",
        ),
        ("23503", "fk_somebody_elses", errors.ForeignKeyViolation, None),
    ],
)
def test_a_native_code_has_its_invariant_from_its_constraint(
    code: str, constraint: str, cls: type[errors.OrchestrationError], invariant: str | None
) -> None:
    typed = translate(server_says(code, constraint=constraint))
    assert (type(typed), typed.invariant, typed.constraint) == (cls, invariant, constraint)


@pytest.mark.parametrize("constraint", errors.BY_CONSTRAINT)
def test_a_constraint_that_says_more_than_its_code_has_a_class_of_its_own(constraint: str) -> None:
    cls = errors.BY_CONSTRAINT[constraint]
    code = "23505" if issubclass(cls, errors.UniqueViolation) else "23503"
    assert type(translate(server_says(code, constraint=constraint))) is cls
    assert type(translate(server_says("23514", constraint=constraint))) is errors.CheckViolation


@pytest.mark.parametrize(
    ("code", "message", "invariant"),
    [
        ("P7101", "INV-POL-002: RETIRED is final", "INV-POL-002"),
        ("22023", "INV-API-001: p_limit must be positive", "INV-API-001"),
        (
            "P7101",
            "public.retire(1): [shop] REMOTE ERROR: INV-POL-002: RETIRED is final",
            "INV-POL-002",
        ),
        ("P7101", "RETIRED is final (INV-POL-002: see there)", None),
        ("P7101", "INV-POL-002 is violated", None),
        ("P7101", "INV-XYZ-001: unknown to the catalogue", None),
        ("P0001", "INV-POL-002: raised by a host under another code", None),
        ("99999", "INV-POL-002: raised by a host under another code", None),
    ],
)
def test_without_a_constraint_the_start_of_the_message_names_the_invariant(
    superuser: Connect, code: str, message: str, invariant: str | None
) -> None:
    error = raised_by(superuser, f"RAISE EXCEPTION USING ERRCODE = '{code}', MESSAGE = '{message}'")
    assert error.diag.constraint_name is None
    typed = translate(error)
    assert typed.invariant == invariant
    assert type(typed) is errors.BY_SQLSTATE.get(code, errors.UnclassifiedDatabaseError)
    assert is_ours(error) is (invariant is not None and code.startswith("P"))


def test_a_constraint_is_believed_before_the_message(superuser: Connect) -> None:
    fields = "ERRCODE = 'P7101', MESSAGE = 'INV-POL-002: RETIRED is final'"
    named = raised_by(superuser, f"RAISE EXCEPTION USING {fields}, CONSTRAINT = 'INV-POL-001'")
    hosts = raised_by(superuser, f"RAISE EXCEPTION USING {fields}, CONSTRAINT = 'my_rule'")
    assert translate(named).invariant == "INV-POL-001"
    assert translate(hosts).invariant is None
    assert not is_ours(hosts)


@pytest.mark.parametrize(
    ("constraint", "cls", "invariant"),
    [
        ("uq_policy_versions_active_102008", errors.ActivePolicyRace, "INV-POL-005"),
        ("uq_policy_versions_grace_102008", errors.UniqueViolation, "INV-POL-008"),
        ("pk_audit_log_7", errors.ChainRace, "INV-AUD-001"),
        ("uq_policy_versions_active_102008_", errors.UniqueViolation, None),
        ("uq_policy_versions_active2", errors.UniqueViolation, None),
    ],
)
def test_the_number_of_a_shard_at_the_end_of_a_constraint_is_ignored(
    superuser: Connect, constraint: str, cls: type[errors.OrchestrationError], invariant: str | None
) -> None:
    superuser.execute(f"CREATE TEMP TABLE sharded (id integer CONSTRAINT {constraint} UNIQUE)")
    error = raised_by(superuser, "INSERT INTO sharded VALUES (1), (1)")
    typed = translate(error)
    assert (type(typed), typed.invariant, typed.constraint) == (cls, invariant, constraint)


def test_no_constraint_of_ours_ends_like_that_of_a_shard() -> None:
    known = {*BY_NATIVE_CONSTRAINT, *errors.BY_CONSTRAINT}
    assert [name for name in known if re.search(r"_\d+$", name)] == []


LOSSES = ["08000", "08001", "08003", "08006", "57P01", "57P02", "57P03", "57P05", "25P03", "53300"]


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError(
            'connection failed: FATAL:  unsupported startup parameter: "options"'
        ),
        server_says("26000", message='prepared statement "_pg3_0" does not exist'),
        server_says("42P05", message='prepared statement "_pg3_0" already exists'),
    ],
)
def test_what_a_pooler_refuses_names_the_engines_option_and_is_not_tried_again(
    error: psycopg.Error,
) -> None:
    for typed in (translate(error), translate_in_call(error, disconnected=True)):
        assert type(typed) is errors.PoolerModeRequired
        assert typed.retry is errors.Retry.NEVER
        assert "pooler=True" in str(typed)
        assert str(error.diag.message_primary or error) in str(typed)
        assert typed.sqlstate == error.sqlstate


@pytest.mark.parametrize("code", LOSSES)
def test_a_loss_before_commit_is_safe_and_during_commit_unknown(code: str) -> None:
    before = translate(server_says(code))
    during = translate(server_says(code), committing=True)
    assert (type(before), before.retry) == (errors.ConnectionLost, errors.Retry.SAFE)
    if code == "25P03":
        # The server ended an idle transaction: it had not received the COMMIT.
        assert (type(during), during.retry) == (errors.ConnectionLost, errors.Retry.SAFE)
        return
    assert (type(during), during.retry) == (
        errors.CommitOutcomeUnknown,
        errors.Retry.AFTER_RESOLUTION,
    )


@pytest.mark.parametrize("code", ["08007", "40003"])
@pytest.mark.parametrize("committing", [True, False])
def test_a_code_that_says_so_is_an_unknown_outcome_always(code: str, committing: bool) -> None:
    assert type(translate(server_says(code), committing=committing)) is errors.CommitOutcomeUnknown


@pytest.mark.parametrize("code", ["40001", "23505", "P7103", "55P03", "57014"])
def test_a_refusal_at_commit_is_no_unknown_outcome(code: str) -> None:
    assert type(translate(server_says(code), committing=True)) is errors.BY_SQLSTATE[code]


@pytest.mark.parametrize("cls", [psycopg.OperationalError, psycopg.InterfaceError])
@pytest.mark.parametrize(
    ("committing", "wanted"),
    [(False, errors.ConnectionLost), (True, errors.CommitOutcomeUnknown)],
)
def test_a_server_that_did_not_speak_is_lost(
    cls: type[psycopg.Error], committing: bool, wanted: type[errors.OrchestrationError]
) -> None:
    typed = translate(cls("server closed the connection"), committing=committing)
    assert (type(typed), typed.sqlstate) == (wanted, None)
    assert str(typed) == "server closed the connection"


def test_the_code_of_a_refused_connect_decides() -> None:
    error = psycopg.OperationalError("connection failed")
    typed = translate(error, refusal="28P01")
    assert (type(typed), typed.sqlstate) == (errors.InvalidPassword, "28P01")
    assert type(translate(error, refusal="53300")) is errors.ConnectionLost


def test_what_sqlalchemy_found_dead_is_lost() -> None:
    error = psycopg.DatabaseError("whatever")
    assert type(translate(error)) is errors.UnclassifiedDatabaseError
    assert type(translate(error, disconnected=True)) is errors.ConnectionLost


def test_a_value_that_the_driver_cannot_send_is_no_loss() -> None:
    typed = translate(psycopg.DataError("PostgreSQL text fields cannot contain NUL"))
    assert type(typed) is errors.UnclassifiedDatabaseError


def test_an_error_of_another_kind_is_unclassified() -> None:
    typed = translate(ValueError("not the driver's"))
    assert type(typed) is errors.UnclassifiedDatabaseError
    assert str(typed) == "not the driver's"


@pytest.mark.parametrize("code", sorted(SCHEMA_CODES))
def test_a_missing_object_inside_a_call_means_that_the_schema_is_not_ready(code: str) -> None:
    error = server_says(code, message='relation "policy_versions" does not exist')
    typed = translate_in_call(error)
    assert (type(typed), typed.sqlstate) == (errors.SchemaNotReady, code)
    assert "alembic upgrade head" in str(typed)
    assert 'relation "policy_versions" does not exist' in str(typed)
    assert type(translate(error)) is errors.UnclassifiedDatabaseError


@pytest.mark.parametrize("code", sorted(set(errors.BY_SQLSTATE) | {"99999"}))
def test_any_other_code_inside_a_call_is_translated_as_everywhere(code: str) -> None:
    assert type(translate_in_call(server_says(code))) is type(translate(server_says(code)))


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (server_says("23505", schema="orchestration"), True),
        (server_says("P7101", constraint="INV-POL-002"), True),
        (server_says("P0001", constraint="INV-ATT-001"), True),
        (server_says("P0001"), False),
        (server_says("P0001", constraint="my_rule"), False),
        (server_says("P7101"), False),
        (server_says("23505", schema="public"), False),
        (server_says("23514", constraint="INV-POL-002", schema="public"), False),
        (server_says("40001"), False),
        (ValueError("INV-POL-002"), False),
    ],
)
def test_ours_is_what_names_our_schema_or_our_invariant(error: Exception, ours: bool) -> None:
    assert is_ours(error) is ours
