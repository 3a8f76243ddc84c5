"""AuditLogRepository as an auditor uses it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestration import errors, models, schema
from orchestration.records import AuditLogRecord, AuditLogReport, NewPolicyVersion
from orchestration.repo import (
    AuditLogRepository,
    KillSwitchRepository,
    PolicyVersionRepository,
    RevocationRepository,
)
from orchestration.vocabulary import AuditAction
from tests.support import Connect, digest, scalar

Sessions = Callable[[str], Session]

MIGRATED = int(schema.REVISION)


def govern(session: Session) -> None:
    """Commit one act of each kind that needs no item."""
    policies = PolicyVersionRepository(session)
    for id in ("v1", "v2"):
        policies.rotate(
            NewPolicyVersion(id=id, description="d", checksum=digest(id), created_by="compliance"),
            grace=timedelta(hours=1),
        )
    policies.retire("v1")
    revocations = RevocationRepository(session)
    revocations.revoke_token(
        token_hash=digest("t"), reason_code="keyCompromise", revoked_by="security"
    )
    revocations.revoke_client_cert(
        cert_fingerprint_sha256=digest("c"), reason_code="superseded", revoked_by="security"
    )
    switches = KillSwitchRepository(session)
    switches.engage(scope="GLOBAL", reason="fraud", engaged_by="ops")
    switches.release(scope="GLOBAL", reason="over", released_by="ops")
    session.commit()


@pytest.mark.invariant("INV-AUD-001")
def test_the_acts_are_returned_in_order_as_frozen_records(
    session: Sessions, superuser: Connect
) -> None:
    control = session("control")
    began = datetime.now(UTC)
    govern(control)
    told = AuditLogRepository(session("auditor")).entries(since=MIGRATED)
    assert [entry.action for entry in told] == [
        AuditAction.ROTATE,
        AuditAction.ROTATE,
        AuditAction.RETIRE,
        AuditAction.REVOKE,
        AuditAction.REVOKE,
        AuditAction.ENGAGE,
        AuditAction.RELEASE,
    ]
    assert [entry.chain_seq for entry in told] == list(range(MIGRATED + 1, MIGRATED + 8))
    assert [one.prev_hash for one in told[1:]] == [one.record_hash for one in told[:-1]]
    login = scalar(superuser, "SELECT db_user FROM orchestration.kill_switches LIMIT 1")
    client = scalar(superuser, "SELECT inet_client_addr()")
    for entry in told:
        assert isinstance(entry, AuditLogRecord)
        assert (entry.db_user, entry.db_role) == (login, login)
        assert entry.client_addr == client
        assert began <= entry.occurred_at <= datetime.now(UTC)
        with pytest.raises(ValidationError):
            entry.action = AuditAction.MIGRATE  # type: ignore[misc]
    rotated = told[1]
    assert rotated.before is not None
    assert {id: row["status"] for id, row in rotated.before.items()} == {"v1": "ACTIVE"}
    assert {id: row["status"] for id, row in rotated.after.items()} == {
        "v1": "GRACE",
        "v2": "ACTIVE",
    }
    # created_by is a claim of the caller, and is recorded as a column of the row.
    assert rotated.after["v2"]["created_by"] == "compliance"


@pytest.mark.invariant("INV-AUD-001")
def test_reading_goes_on_from_where_it_stopped(session: Sessions) -> None:
    log = AuditLogRepository(session("auditor"))
    everything = log.entries()
    assert len(everything) == MIGRATED
    assert everything[-1].after["revision"] == schema.REVISION
    govern(session("control"))
    later = log.entries(since=everything[-1].chain_seq)
    assert len(later) == 7
    assert log.entries() == [*everything, *later]
    assert log.entries(since=later[-1].chain_seq) == []


@pytest.mark.invariant("INV-AUD-001")
@pytest.mark.parametrize("role", ["auditor", "control"])
def test_a_whole_log_is_reported_as_whole(session: Sessions, role: str) -> None:
    govern(session("control"))
    assert AuditLogRepository(session(role)).verify_chain() == AuditLogReport(
        ok=True,
        entries=MIGRATED + 7,
        break_chain_seq=None,
        break_table_name=None,
        break_key=None,
        break_reason=None,
    )


@pytest.mark.invariant("INV-AUD-001")
def test_an_entry_by_hand_is_reported(session: Sessions, owner: Connect) -> None:
    owner.execute(
        "INSERT INTO orchestration.audit_log (action, table_name, after)"
        " VALUES ('REVOKE', 'revoked_tokens', jsonb_build_object('forged', 'true'))"
    )
    found = AuditLogRepository(session("auditor")).verify_chain()
    assert not found.ok
    assert (found.break_chain_seq, found.break_table_name, found.break_key) == (
        *(MIGRATED + 1, "revoked_tokens", "forged"),
    )
    assert found.break_reason == "no act explains this entry"


@pytest.mark.parametrize("since", ["1", 1.5, True, 2**63, b"1"])
def test_a_place_that_is_none_is_refused_before_the_database(session: Sessions, since: Any) -> None:
    with pytest.raises((TypeError, ValidationError), match="since"):
        AuditLogRepository(session("auditor")).entries(since=since)


@pytest.mark.parametrize("role", ["ingest", "executor", "readonly"])
def test_the_log_is_read_by_auditor_and_control_only(session: Sessions, role: str) -> None:
    for look in (AuditLogRepository.entries, AuditLogRepository.verify_chain):
        one = session(role)
        with pytest.raises(errors.InsufficientPrivilege):
            look(AuditLogRepository(one))
        one.rollback()


def test_the_model_reads_what_the_records_tell(session: Sessions) -> None:
    govern(session("control"))
    auditor = session("auditor")
    told = AuditLogRepository(auditor).entries()
    stored = auditor.scalars(select(models.AuditLog).order_by(models.AuditLog.chain_seq)).all()
    assert [AuditLogRecord.model_validate(one, from_attributes=True) for one in stored] == told
    head = auditor.scalars(select(models.AuditLogHead)).one()
    assert (head.chain_seq, head.record_hash) == (told[-1].chain_seq, told[-1].record_hash)


@pytest.mark.invariant("INV-AUD-001")
def test_an_entry_after_an_older_snapshot_is_a_serialization_failure(session: Sessions) -> None:
    late = session("control")
    late.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    assert AuditLogRepository(late).entries(since=MIGRATED) == []
    govern(session("control"))
    with pytest.raises(errors.SerializationFailure):
        RevocationRepository(late).revoke_token(
            token_hash=digest("late"), reason_code="unspecified", revoked_by="security"
        )
