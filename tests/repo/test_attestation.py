"""AttestationRepository as the services use it: in the caller's transaction, as their roles."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from orchestration import errors
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import (
    AttestationEventRecord,
    AttestationRecord,
    AttestationStatus,
    ChainReport,
    NewAttestation,
)
from orchestration.repo import AttestationRepository
from orchestration.vocabulary import AttestationEvent, TerminalStatus
from tests.support import (
    Connect,
    activate_policy,
    attestation_record_hash,
    digest,
    replayed,
    scalar,
)

Sessions = Callable[[str], Session]

RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")
NOWHERE = UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def new(key: str, caller: str = "alice", **fields: Any) -> NewAttestation:
    return NewAttestation(
        **{
            "caller_identity": caller,
            "idempotency_key": key,
            "payload_hash": digest(key),
            "policy_version_id": "v1",
        }
        | fields
    )


@pytest.fixture
def policy(owner: Connect) -> str:
    return activate_policy(owner)


@pytest.fixture
def ingest(session: Sessions, policy: str) -> AttestationRepository:
    return AttestationRepository(session("ingest"))


@pytest.fixture
def attested(session: Sessions, policy: str) -> AttestationRecord:
    """Append one attestation and commit it."""
    with session("ingest") as one:
        made = AttestationRepository(one).append(new("k1"))
        one.commit()
        return made


def count(connection: Connect) -> int:
    return int(scalar(connection, "SELECT count(*) FROM orchestration.ingress_attestations"))


def assert_refused(
    error: OrchestrationError,
    *,
    sqlstate: str,
    invariant: str,
    table: str,
    column: str | None,
    detail: dict[str, object],
) -> None:
    assert (error.sqlstate, error.invariant, error.constraint) == (sqlstate, invariant, invariant)
    assert (error.schema, error.table, error.column) == ("orchestration", table, column)
    assert error.detail == detail
    assert error.hint
    assert error.retry is Retry.NEVER
    assert str(error).startswith(f"{invariant}: ")
    assert isinstance(error.__cause__, psycopg.Error)


# Appending.


@pytest.mark.invariant("INV-ATT-006")
def test_an_attestation_is_returned_as_it_was_stored(ingest: AttestationRepository) -> None:
    made = ingest.append(
        new(
            "k1",
            signature_hash=digest("s"),
            client_cert_fingerprint_sha256=digest("c"),
            token_hash=digest("t"),
        )
    )
    assert made == AttestationRecord(
        id=made.id,
        caller_identity="alice",
        chain_seq=1,
        idempotency_key="k1",
        payload_hash=digest("k1"),
        signature_hash=digest("s"),
        client_cert_fingerprint_sha256=digest("c"),
        token_hash=digest("t"),
        policy_version_id="v1",
        execution_started=False,
        execution_completed=False,
        terminal_status=None,
        attested_at=made.attested_at,
        prev_hash="",
        record_hash=attestation_record_hash(made.model_dump()),
        db_user=made.db_user,
    )
    assert made.id.version == 7
    assert made.attested_at.tzinfo is not None
    assert made.db_user.endswith("_ingest")


@pytest.mark.invariant("INV-ATT-005")
def test_a_batch_is_returned_in_its_order_and_chained(ingest: AttestationRepository) -> None:
    news = [new(str(n), ("alice", "bob", "carol")[n % 3]) for n in range(30)]
    records = ingest.append_many(news)
    assert [(made.caller_identity, made.idempotency_key) for made in records] == [
        (one.caller_identity, one.idempotency_key) for one in news
    ]
    for caller in ("alice", "bob", "carol"):
        chain = [made for made in records if made.caller_identity == caller]
        assert [made.chain_seq for made in chain] == list(range(1, 11))
        assert [made.prev_hash for made in chain] == ["", *(m.record_hash for m in chain[:-1])]
    assert [made.id for made in records] == sorted(made.id for made in records)


@pytest.mark.parametrize("key", ["ключ", "🏦💶", "a, 3:b", 'quote" \\ {}', " ", "\t\n", "\u0085"])
@pytest.mark.invariant("INV-ATT-006")
def test_any_text_comes_back_as_it_went_in(ingest: AttestationRepository, key: str) -> None:
    made = ingest.append(new(key, caller=key))
    assert (made.caller_identity, made.idempotency_key) == (key, key)
    assert made.record_hash == attestation_record_hash(made.model_dump())
    assert ingest.append(new(key, caller=key)) == replayed(made)


@pytest.mark.invariant("INV-ATT-007")
def test_a_replay_gives_the_first_record(ingest: AttestationRepository) -> None:
    first = ingest.append(new("k1"))
    assert ingest.append(new("k1")) == replayed(first)
    # Other fields do not make it a different request. The record contains what was attested first.
    assert ingest.append(new("k1", signature_hash=digest("s"))) == replayed(first)
    assert ingest.append(new("k2")).chain_seq == 2


@pytest.mark.invariant("INV-ATT-007")
def test_duplicates_within_a_batch_are_one_record_returned_at_each_place(
    ingest: AttestationRepository, owner: Connect
) -> None:
    ingest.append(new("old"))
    records = ingest.append_many([new(key) for key in ("a", "b", "a", "old", "c", "b", "a")])
    assert [made.idempotency_key for made in records] == ["a", "b", "a", "old", "c", "b", "a"]
    assert records[2] == records[6] == replayed(records[0])
    assert records[5] == replayed(records[1])
    assert [made.replayed for made in records] == [False, False, True, True, False, True, True]
    assert [made.chain_seq for made in records] == [2, 3, 2, 1, 4, 3, 2]


@pytest.mark.invariant("INV-ATT-007")
@pytest.mark.parametrize("where", ["attested before", "within the batch"])
def test_a_key_with_other_content_undoes_the_batch(
    session: Sessions, policy: str, owner: Connect, where: str
) -> None:
    with session("ingest") as one:
        repository = AttestationRepository(one)
        first = repository.append(new("k1"))
        one.commit()
        news = [new("k2"), new("k1", payload_hash=digest("other")), new("k3")]
        if where == "within the batch":
            news = [new("k2"), new("k3"), new("k2", payload_hash=digest("other"))]
        with pytest.raises(errors.IdempotencyConflict) as raised, one.begin_nested():
            repository.append_many(news)
        error = raised.value
        assert error.detail is not None
        assert_refused(
            error,
            sqlstate="P7303",
            invariant="INV-ATT-007",
            table="ingress_attestations",
            column="idempotency_key",
            detail={
                "id": error.detail["id"],
                "caller_identity": "alice",
                "idempotency_key": "k1" if where == "attested before" else "k2",
            },
        )
        if where == "attested before":
            assert error.detail["id"] == str(first.id)
        one.commit()
    assert count(owner) == 1


@pytest.mark.invariant("INV-ATT-008")
def test_a_policy_that_is_not_accepted_undoes_the_batch(
    session: Sessions, policy: str, owner: Connect
) -> None:
    with session("ingest") as one:
        with pytest.raises(errors.PolicyNotAccepted) as raised:
            AttestationRepository(one).append_many([new("k1"), new("k2", policy_version_id="v9")])
        assert_refused(
            raised.value,
            sqlstate="P7105",
            invariant="INV-ATT-008",
            table="policy_versions",
            column="id",
            detail={"id": "v9", "caller_identity": "alice", "idempotency_key": "k2"},
        )
        one.rollback()
    assert count(owner) == 0


@pytest.mark.invariant("INV-ATT-008")
def test_a_policy_in_grace_is_accepted_and_a_retired_one_is_not(
    ingest: AttestationRepository, owner: Connect
) -> None:
    for id in ("v2", "v3"):
        activate_policy(owner, id)
    ingest.append(new("k2", policy_version_id="v2"))
    ingest.append(new("k3", policy_version_id="v3"))
    with pytest.raises(errors.PolicyNotAccepted):
        ingest.append(new("k1"))


CREDENTIALS = {
    "client_cert_fingerprint_sha256": (
        "revoke_client_cert",
        "revoked_client_certs",
        "cert_fingerprint_sha256",
    ),
    "token_hash": ("revoke_token", "revoked_tokens", "token_hash"),
}


@pytest.mark.invariant("INV-ATT-009")
@pytest.mark.parametrize("field", CREDENTIALS)
def test_a_revoked_credential_undoes_the_batch(
    session: Sessions, policy: str, owner: Connect, field: str
) -> None:
    function, table, column = CREDENTIALS[field]
    kind = "TOKEN" if field == "token_hash" else "CLIENT_CERT"
    revoked = digest("revoked")
    owner.execute(f"SELECT orchestration.{function}(%s, 'superseded')", (revoked,))
    with session("ingest") as one:
        with pytest.raises(errors.CredentialRevoked) as raised:
            AttestationRepository(one).append_many([new("k1"), new("k2", **{field: revoked})])
        assert_refused(
            raised.value,
            sqlstate="P7202",
            invariant="INV-ATT-009",
            table=table,
            column=column,
            detail={"credential": kind, "caller_identity": "alice", "idempotency_key": "k2"},
        )
        one.rollback()
    assert count(owner) == 0


@pytest.mark.invariant("INV-ATT-007", "INV-ATT-008", "INV-ATT-009")
def test_a_replay_is_answered_after_its_policy_was_retired_and_its_credentials_revoked(
    session: Sessions, policy: str, owner: Connect
) -> None:
    request = new("k1", **{field: digest(field) for field in CREDENTIALS})
    with session("ingest") as one:
        repository = AttestationRepository(one)
        first = repository.append(request)
        one.commit()
        for id in ("v2", "v3"):
            activate_policy(owner, id)
        for field, (function, _, _) in CREDENTIALS.items():
            owner.execute(f"SELECT orchestration.{function}(%s, 'superseded')", (digest(field),))
        assert repository.append(request) == replayed(first)
        # This also holds if the batch contains new records.
        records = repository.append_many([request, new("k2", policy_version_id="v3")])
        assert records[0] == replayed(first)
        assert records[1].chain_seq == 2
        with pytest.raises(errors.PolicyNotAccepted):
            repository.append(new("k3"))


# The size of a batch.


def test_a_batch_of_none_is_none(ingest: AttestationRepository, owner: Connect) -> None:
    assert ingest.append_many([]) == []


def test_a_batch_of_none_needs_no_policy(session: Sessions) -> None:
    assert AttestationRepository(session("ingest")).append_many([]) == []


@pytest.mark.invariant("INV-API-001", "INV-ATT-005")
def test_ten_thousand_are_a_batch_and_one_more_is_too_many(session: Sessions, policy: str) -> None:
    news = [new(str(n), f"caller {n % 10}") for n in range(10_001)]
    with session("ingest") as one:
        repository = AttestationRepository(one)
        with pytest.raises(errors.InvalidParameterValue) as raised, one.begin_nested():
            repository.append_many(news)
        assert_refused(
            raised.value,
            sqlstate="22023",
            invariant="INV-API-001",
            table="ingress_attestations",
            column=None,
            detail={},
        )
        records = repository.append_many(news[:-1])
        one.commit()
    assert [made.idempotency_key for made in records] == [str(n) for n in range(10_000)]
    with session("auditor") as one:
        report = AttestationRepository(one).verify_chain("caller 3")
    assert (report.ok, report.records) == (True, 1000)


def test_a_batch_of_any_size_is_one_round_trip(
    session: Sessions, engine: Callable[[str], Engine], policy: str
) -> None:
    statements: list[str] = []
    with session("ingest") as one:
        one.execute(text("SELECT 1"))
        event.listen(
            engine("ingest"),
            "before_cursor_execute",
            lambda _c, _cur, statement, *_: statements.append(statement),
        )
        repository = AttestationRepository(one)
        for size in (0, 1, 500):
            statements.clear()
            repository.append_many([new(f"{size}-{n}") for n in range(size)])
            assert len(statements) == 1
            assert "append_attestations" in statements[0]


# Inputs that never reach the database.

TEXTS = ("caller_identity", "idempotency_key", "policy_version_id")
HASHES = ("payload_hash", "signature_hash", "client_cert_fingerprint_sha256", "token_hash")


@pytest.mark.parametrize("value", ["", "a\x00b", "\x00", "\ud800", "k\udfff", 7, None], ids=ascii)
@pytest.mark.parametrize("field", TEXTS)
def test_text_that_postgresql_cannot_store_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        new("k1", **{field: value})
    assert [error["loc"] for error in raised.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "value", ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "0" * 63 + "\x00", b"0" * 64]
)
@pytest.mark.parametrize("field", HASHES)
def test_a_malformed_hash_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        new("k1", **{field: value})
    assert [error["loc"] for error in raised.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "field", ["id", "chain_seq", "prev_hash", "record_hash", "attested_at", "db_user", "xact_id"]
)
def test_what_the_database_sets_is_not_taken(field: str) -> None:
    with pytest.raises(ValidationError):
        new("k1", **{field: "x"})


def test_an_input_does_not_change() -> None:
    request = new("k1")
    with pytest.raises(ValidationError):
        request.idempotency_key = "k2"


@pytest.mark.invariant("INV-ATT-003")
@pytest.mark.parametrize("status", ["DONE", "", "success", "SUCCESS\x00"])
def test_a_terminal_status_that_does_not_exist_never_reaches_the_database(
    session: Sessions, attested: AttestationRecord, status: str
) -> None:
    repository = AttestationRepository(session("executor"))
    repository.start_execution(attested.id)
    with pytest.raises(ValidationError, match="'SUCCESS', 'FAILED' or 'REPAIRED'"):
        repository.complete_execution(attested.id, status)


# Events.


@pytest.mark.invariant("INV-ATT-010")
def test_an_execution_starts_and_completes(session: Sessions, attested: AttestationRecord) -> None:
    repository = AttestationRepository(session("executor"))
    assert repository.status(attested.id) == AttestationStatus(
        attestation_id=attested.id,
        caller_identity="alice",
        chain_seq=1,
        idempotency_key="k1",
        policy_version_id="v1",
        attested_at=attested.attested_at,
        execution_started=False,
        execution_started_at=None,
        execution_completed=False,
        execution_completed_at=None,
        terminal_status=None,
    )
    started = repository.start_execution(attested.id)
    assert started == AttestationEventRecord(
        attestation_id=attested.id,
        event=AttestationEvent.EXECUTION_STARTED,
        caller_identity="alice",
        terminal_status=None,
        occurred_at=started.occurred_at,
        recorded_by=started.db_user,
        db_user=started.db_user,
    )
    assert started.db_user.endswith("_executor")
    completed = repository.complete_execution(attested.id, TerminalStatus.REPAIRED)
    assert completed.event is AttestationEvent.EXECUTION_COMPLETED
    assert completed.terminal_status is TerminalStatus.REPAIRED
    assert completed.occurred_at > started.occurred_at
    status = repository.status(attested.id)
    assert status is not None
    assert (status.execution_started, status.execution_completed) == (True, True)
    assert status.execution_started_at == started.occurred_at
    assert status.execution_completed_at == completed.occurred_at
    assert status.terminal_status is TerminalStatus.REPAIRED
    # A repetition returns what is recorded.
    assert repository.start_execution(attested.id) == replayed(started)
    assert repository.complete_execution(attested.id, "REPAIRED") == replayed(completed)


@pytest.mark.invariant("INV-ATT-010")
def test_a_completion_with_another_status_is_refused(
    session: Sessions, attested: AttestationRecord
) -> None:
    repository = AttestationRepository(session("executor"))
    repository.start_execution(attested.id)
    repository.complete_execution(attested.id, "SUCCESS")
    with pytest.raises(errors.InvalidAttestationState) as raised:
        repository.complete_execution(attested.id, "FAILED")
    assert_refused(
        raised.value,
        sqlstate="P7301",
        invariant="INV-ATT-010",
        table="ingress_attestation_events",
        column="terminal_status",
        detail={
            "attestation_id": str(attested.id),
            "event": "EXECUTION_COMPLETED",
            "terminal_status": "SUCCESS",
        },
    )


@pytest.mark.invariant("INV-ATT-002")
def test_nothing_completes_before_it_starts(session: Sessions, attested: AttestationRecord) -> None:
    with pytest.raises(errors.InvalidAttestationState) as raised:
        AttestationRepository(session("executor")).complete_execution(attested.id, "FAILED")
    assert_refused(
        raised.value,
        sqlstate="P7301",
        invariant="INV-ATT-002",
        table="ingress_attestation_events",
        column="event",
        detail={"attestation_id": str(attested.id), "event": "EXECUTION_COMPLETED"},
    )


@pytest.mark.invariant("INV-API-002")
@pytest.mark.parametrize(
    "act",
    [
        lambda attestations: attestations.start_execution(NOWHERE),
        lambda attestations: attestations.complete_execution(NOWHERE, "SUCCESS"),
    ],
    ids=["start", "complete"],
)
def test_an_event_of_nothing_is_not_found(
    session: Sessions, policy: str, act: Callable[[AttestationRepository], object]
) -> None:
    with pytest.raises(errors.NotFound) as raised:
        act(AttestationRepository(session("executor")))
    assert_refused(
        raised.value,
        sqlstate="P0002",
        invariant="INV-API-002",
        table="ingress_attestations",
        column="id",
        detail={"id": str(NOWHERE)},
    )


def test_the_status_of_nothing_is_none(session: Sessions) -> None:
    assert AttestationRepository(session("readonly")).status(uuid4()) is None


# Verification.


@pytest.mark.parametrize("role", ["auditor", "control"])
def test_a_chain_is_verified(
    session: Sessions, attested: AttestationRecord, owner: Connect, role: str
) -> None:
    reading = session(role)
    repository = AttestationRepository(reading)
    whole = ChainReport(
        ok=True, records=1, break_chain_seq=None, break_attestation_id=None, break_reason=None
    )
    assert repository.verify_chain("alice") == whole
    assert repository.verify_chain("nobody").records == 0
    assert repository.verify_chain("nobody").ok
    reading.rollback()
    owner.execute("DROP TRIGGER append_only ON orchestration.ingress_attestations")
    owner.execute("UPDATE orchestration.ingress_attestations SET policy_version_id = 'v0'")
    assert repository.verify_chain("alice") == ChainReport(
        ok=False,
        records=1,
        break_chain_seq=1,
        break_attestation_id=attested.id,
        break_reason="record_hash is not the hash of the record",
    )


@pytest.mark.invariant("INV-ATT-005")
def test_a_chain_that_lost_its_tail_takes_no_more(
    session: Sessions, attested: AttestationRecord, owner: Connect
) -> None:
    owner.execute("DROP TRIGGER append_only ON orchestration.ingress_attestations")
    owner.execute("DELETE FROM orchestration.ingress_attestations")
    with pytest.raises(errors.ChainDiscontinuity) as raised:
        AttestationRepository(session("ingest")).append(new("k2"))
    assert_refused(
        raised.value,
        sqlstate="P7302",
        invariant="INV-ATT-005",
        table="ingress_attestations",
        column="chain_seq",
        detail={"caller_identity": "alice", "idempotency_key": "k2", "head": 1, "chain_seq": 0},
    )


# Roles.

ACTS: dict[str, tuple[Callable[[AttestationRepository, UUID], object], set[str]]] = {
    "append": (lambda repository, _: repository.append(new("k2")), {"ingest"}),
    "append_many": (lambda repository, _: repository.append_many([]), {"ingest"}),
    "start_execution": (lambda repository, id: repository.start_execution(id), {"executor"}),
    "complete_execution": (
        lambda repository, id: repository.complete_execution(id, "SUCCESS"),
        {"executor"},
    ),
    "status": (lambda repository, id: repository.status(id), set(RUNTIME_ROLES)),
    "verify_chain": (
        lambda repository, _: repository.verify_chain("alice"),
        {"auditor", "control"},
    ),
}


@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_each_role_does_its_own_acts_and_no_other(
    session: Sessions, attested: AttestationRecord, owner: Connect, role: str, name: str
) -> None:
    owner.execute(
        "SELECT orchestration.record_attestation_event(%s, 'EXECUTION_STARTED')", (attested.id,)
    )
    act, allowed = ACTS[name]
    repository = AttestationRepository(session(role))
    if role in allowed:
        act(repository, attested.id)
        return
    with pytest.raises(errors.InsufficientPrivilege) as raised:
        act(repository, attested.id)
    error = raised.value
    assert (error.sqlstate, error.invariant, error.retry) == ("42501", None, Retry.NEVER)
    assert isinstance(error.__cause__, psycopg.Error)


# The caller's transaction.


@pytest.mark.parametrize("role", ["ingest", "executor", "auditor"])
def test_a_repository_never_commits(
    session: Sessions,
    engine: Callable[[str], Engine],
    attested: AttestationRecord,
    owner: Connect,
    role: str,
) -> None:
    ends: list[str] = []
    event.listen(engine(role), "commit", lambda _: ends.append("commit"))
    event.listen(engine(role), "rollback", lambda _: ends.append("rollback"))
    acts = {
        "ingest": ("append", "append_many", "status"),
        "executor": ("start_execution", "complete_execution", "status"),
        "auditor": ("verify_chain", "status"),
    }
    with session(role) as one:
        for name in acts[role]:
            ACTS[name][0](AttestationRepository(one), attested.id)
        assert ends == []
        assert count(owner) == 1
        assert scalar(owner, "SELECT count(*) FROM orchestration.ingress_attestation_events") == 0
        one.rollback()
    assert ends == ["rollback"]
    assert count(owner) == 1


def test_records_outlive_their_session_and_do_not_change(session: Sessions, policy: str) -> None:
    with session("ingest") as one:
        made = AttestationRepository(one).append(new("k1"))
        one.commit()
        one.expire_all()
    with session("executor") as one:
        started = AttestationRepository(one).start_execution(made.id)
        status = AttestationRepository(one).status(made.id)
        one.commit()
    with session("auditor") as one:
        report = AttestationRepository(one).verify_chain("alice")
    assert (type(made), type(started), type(status), type(report)) == (
        *(AttestationRecord, AttestationEventRecord, AttestationStatus, ChainReport),
    )
    for record, field in (
        (made, "record_hash"),
        (started, "event"),
        (status, "terminal_status"),
        (report, "ok"),
    ):
        with pytest.raises(ValidationError):
            setattr(record, field, "other")


@pytest.mark.invariant("INV-ATT-007", "INV-ATT-008")
def test_an_expected_refusal_in_a_savepoint_leaves_the_transaction_usable(
    session: Sessions, policy: str, owner: Connect
) -> None:
    with session("ingest") as one:
        repository = AttestationRepository(one)
        repository.append(new("k1"))
        with pytest.raises(errors.IdempotencyConflict), one.begin_nested():
            repository.append_many([new("k9"), new("k1", payload_hash=digest("other"))])
        with pytest.raises(errors.PolicyNotAccepted), one.begin_nested():
            repository.append(new("k2", policy_version_id="v9"))
        assert repository.append(new("k3")).chain_seq == 2
        one.commit()
    assert count(owner) == 2


def test_without_a_savepoint_a_refusal_fails_the_transaction(
    ingest: AttestationRepository,
) -> None:
    ingest.append(new("k1"))
    with pytest.raises(errors.PolicyNotAccepted):
        ingest.append(new("k2", policy_version_id="v9"))
    with pytest.raises(errors.FailedTransaction):
        ingest.append(new("k3"))
