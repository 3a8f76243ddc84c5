"""RevocationRepository as the services use it: in the caller's transaction, as their roles."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, event, text
from sqlalchemy.orm import Session

from orchestration import errors
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import RevocationRecord, RevocationsSince
from orchestration.repo import RevocationRepository
from orchestration.vocabulary import CredentialKind, CRLReason
from tests.support import Connect, digest, scalar

Sessions = Callable[[str], Session]

RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")
READERS = ("ingest", "control", "readonly", "auditor")
GATED = ("ingest", "executor", "control")
HASH = digest("credential")
PAST = datetime(2020, 1, 1, tzinfo=UTC)

TABLES = {"cert": "revoked_client_certs", "token": "revoked_tokens"}
COLUMNS = {"cert": "cert_fingerprint_sha256", "token": "token_hash"}

each_kind = pytest.mark.parametrize("kind", ["cert", "token"])


def revoke(
    revocations: RevocationRepository,
    kind: str,
    hash: str = HASH,
    *,
    reason_code: CRLReason | str = CRLReason.KEY_COMPROMISE,
    revoked_by: str = "ops@example.com",
    **times: Any,
) -> RevocationRecord:
    if kind == "cert":
        return revocations.revoke_client_cert(
            cert_fingerprint_sha256=hash, reason_code=reason_code, revoked_by=revoked_by, **times
        )
    return revocations.revoke_token(
        token_hash=hash, reason_code=reason_code, revoked_by=revoked_by, **times
    )


def is_revoked(
    revocations: RevocationRepository, kind: str, hash: str = HASH, at: datetime | None = None
) -> bool:
    if kind == "cert":
        return revocations.is_client_cert_revoked(hash, at)
    return revocations.is_token_revoked(hash, at)


def require(revocations: RevocationRepository, kind: str, hash: str = HASH) -> None:
    if kind == "cert":
        revocations.require_not_revoked(client_cert_fingerprint_sha256=hash)
    else:
        revocations.require_not_revoked(token_hash=hash)


@pytest.fixture
def control(session: Sessions) -> RevocationRepository:
    return RevocationRepository(session("control"))


def count(connection: Connect) -> int:
    return sum(
        scalar(connection, f"SELECT count(*) FROM orchestration.{table}")
        for table in TABLES.values()
    )


# Revoking.


@each_kind
def test_a_revocation_is_returned_as_it_was_stored(
    control: RevocationRepository, kind: str
) -> None:
    made = revoke(control, kind)
    assert made == RevocationRecord(
        credential=CredentialKind.CLIENT_CERT if kind == "cert" else CredentialKind.TOKEN,
        hash=HASH,
        revocation_no=1,
        revoked_at=made.revoked_at,
        recorded_at=made.revoked_at,
        expires_at=None,
        reason_code=CRLReason.KEY_COMPROMISE,
        revoked_by="ops@example.com",
        db_user=made.db_user,
    )
    assert made.revoked_at.tzinfo is not None
    assert made.db_user.endswith("_control")
    assert made.reason_code is CRLReason.KEY_COMPROMISE
    assert control.since(None).revocations == (made,)


@each_kind
def test_a_revocation_in_the_past_keeps_its_time_and_says_when_it_was_learnt(
    control: RevocationRepository, kind: str
) -> None:
    expires = datetime(2100, 1, 1, 12, 30, 0, 7, tzinfo=UTC)
    made = revoke(control, kind, revoked_at=PAST, expires_at=expires)
    assert (made.revoked_at, made.expires_at) == (PAST, expires)
    assert made.recorded_at > PAST + timedelta(days=365)


@pytest.mark.invariant("INV-REV-006")
@each_kind
def test_revoking_twice_answers_with_the_first_record(
    control: RevocationRepository, kind: str
) -> None:
    first = revoke(control, kind)
    assert (
        revoke(
            control,
            kind,
            reason_code="superseded",
            revoked_by="somebody else",
            revoked_at=PAST,
            expires_at=datetime(2100, 1, 1, tzinfo=UTC),
        )
        == first
    )
    assert control.since(None).revocations == (first,)


@pytest.mark.parametrize("reason", CRLReason)
def test_a_reason_may_be_a_word_or_its_name(
    control: RevocationRepository, reason: CRLReason
) -> None:
    assert revoke(control, "cert", reason_code=reason).reason_code is reason
    assert revoke(control, "token", reason_code=str(reason)).reason_code is reason


@pytest.mark.invariant("INV-REV-005")
@each_kind
def test_a_revocation_to_come_is_refused(control: RevocationRepository, kind: str) -> None:
    later = datetime(2200, 1, 1, tzinfo=UTC)
    with pytest.raises(errors.InvalidRevocation) as raised:
        revoke(control, kind, revoked_at=later)
    error = raised.value
    assert (error.sqlstate, error.invariant, error.constraint) == (
        "P7201",
        "INV-REV-005",
        "INV-REV-005",
    )
    assert (error.schema, error.table, error.column) == (
        "orchestration",
        TABLES[kind],
        "revoked_at",
    )
    assert error.detail is not None
    assert error.detail.keys() == {"revocation_no", "revoked_at"}
    assert error.hint
    assert error.retry is Retry.NEVER
    assert isinstance(error.__cause__, psycopg.Error)


@pytest.mark.invariant("INV-REV-002")
@each_kind
def test_an_expiry_before_the_revocation_is_refused(
    control: RevocationRepository, kind: str
) -> None:
    with pytest.raises(errors.CheckViolation) as raised:
        revoke(control, kind, expires_at=PAST)
    error = raised.value
    assert (error.sqlstate, error.constraint, error.invariant) == (
        "23514",
        f"ck_{TABLES[kind]}_expiry",
        "INV-REV-002",
    )
    assert (error.schema, error.table) == ("orchestration", TABLES[kind])


MALFORMED = {
    "empty": "",
    "short": "0" * 63,
    "long": "0" * 65,
    "upper case": "A" * 64,
    "other letters": "g" * 64,
    "a line feed after it": "0" * 64 + "\n",
    "a NUL": "0" * 63 + "\x00",
    "a lone surrogate": "0" * 63 + "\ud800",
    "other digits": "٣" * 64,
}
BAD_TEXT = ("", "a\x00b", "\ud83d", "x\udfff")


@pytest.mark.invariant("INV-REV-003")
@pytest.mark.parametrize("hash", MALFORMED.values(), ids=MALFORMED)
@each_kind
def test_a_malformed_hash_never_reaches_the_database(
    control: RevocationRepository, owner: Connect, kind: str, hash: str
) -> None:
    for act in (revoke, is_revoked):
        with pytest.raises(ValidationError):
            act(control, kind, hash)
    assert count(owner) == 0


@pytest.mark.invariant("INV-REV-003", "INV-ATT-009")
@pytest.mark.parametrize("hash", MALFORMED.values(), ids=MALFORMED)
@each_kind
def test_a_malformed_hash_is_not_taken_for_an_unrevoked_one(
    control: RevocationRepository, kind: str, hash: str
) -> None:
    with pytest.raises(ValidationError):
        require(control, kind, hash)


@pytest.mark.parametrize("by", BAD_TEXT, ids=ascii)
@each_kind
def test_a_name_that_postgresql_cannot_store_never_reaches_the_database(
    control: RevocationRepository, kind: str, by: str
) -> None:
    with pytest.raises(ValidationError):
        revoke(control, kind, revoked_by=by)


@pytest.mark.invariant("INV-REV-004")
@pytest.mark.parametrize("reason", ["removeFromCRL", "", "KEY_COMPROMISE", "keycompromise"])
@each_kind
def test_an_unknown_reason_never_reaches_the_database(
    control: RevocationRepository, kind: str, reason: str
) -> None:
    with pytest.raises(ValidationError):
        revoke(control, kind, reason_code=reason)


@pytest.mark.parametrize("field", ["revoked_at", "expires_at"])
@each_kind
def test_a_naive_time_is_refused(control: RevocationRepository, kind: str, field: str) -> None:
    with pytest.raises(ValidationError):
        revoke(control, kind, **{field: datetime(2020, 1, 1)})


@each_kind
def test_a_naive_time_is_asked_about_in_vain(control: RevocationRepository, kind: str) -> None:
    with pytest.raises(ValidationError):
        is_revoked(control, kind, at=datetime(2020, 1, 1))


# Queries.


@each_kind
def test_is_revoked_by_the_clock(control: RevocationRepository, kind: str) -> None:
    assert not is_revoked(control, kind)
    revoke(control, kind)
    assert is_revoked(control, kind)
    assert not is_revoked(control, kind, digest("another"))
    assert not is_revoked(control, "token" if kind == "cert" else "cert")


@each_kind
def test_is_revoked_at_a_time(control: RevocationRepository, kind: str) -> None:
    until = PAST + timedelta(days=30)
    microsecond = timedelta(microseconds=1)
    revoke(control, kind, revoked_at=PAST, expires_at=until)
    assert not is_revoked(control, kind)
    for at, expected in (
        (PAST - microsecond, False),
        (PAST, True),
        (until - microsecond, True),
        (until, False),
    ):
        assert is_revoked(control, kind, at=at) is expected


@each_kind
def test_is_revoked_is_the_same_time_in_every_zone(
    control: RevocationRepository, kind: str
) -> None:
    revoke(control, kind, revoked_at=PAST)
    at = PAST.astimezone(ZoneInfo("Pacific/Apia"))
    assert is_revoked(control, kind, at=at)
    assert not is_revoked(control, kind, at=at - timedelta(microseconds=1))


@pytest.mark.invariant("INV-REV-006", "INV-REV-007")
@each_kind
def test_a_credential_is_revoked_while_any_of_its_records_is_in_force(
    control: RevocationRepository, kind: str
) -> None:
    until = PAST + timedelta(days=30)
    hold = revoke(control, kind, reason_code="certificateHold", revoked_at=PAST, expires_at=until)
    assert not is_revoked(control, kind)
    compromised = revoke(control, kind)
    assert [hold.revocation_no, compromised.revocation_no] == [1, 2]
    assert is_revoked(control, kind)
    assert is_revoked(control, kind, at=PAST)
    assert not is_revoked(control, kind, at=until)
    assert is_revoked(control, kind, at=compromised.revoked_at)
    assert control.since(None).revocations == (hold, compromised)


@pytest.mark.invariant("INV-ATT-009")
@pytest.mark.parametrize("role", GATED)
@each_kind
def test_a_revoked_credential_is_refused_to_those_who_act(
    session: Sessions, control: RevocationRepository, role: str, kind: str
) -> None:
    revoke(control, kind)
    control._session.commit()
    with pytest.raises(errors.CredentialRevoked) as raised:
        require(RevocationRepository(session(role)), kind)
    error = raised.value
    assert (error.sqlstate, error.invariant) == ("P7202", "INV-ATT-009")
    assert (error.schema, error.table, error.column) == (
        "orchestration",
        TABLES[kind],
        COLUMNS[kind],
    )
    assert error.detail == {"credential": "CLIENT_CERT" if kind == "cert" else "TOKEN"}
    assert error.retry is Retry.NEVER


@pytest.mark.invariant("INV-ATT-009")
def test_requiring_a_credential_that_is_not_revoked_succeeds(control: RevocationRepository) -> None:
    control.require_not_revoked()
    control.require_not_revoked(client_cert_fingerprint_sha256=HASH, token_hash=HASH)


@each_kind
def test_an_expired_revocation_does_not_refuse(control: RevocationRepository, kind: str) -> None:
    revoke(control, kind, revoked_at=PAST, expires_at=PAST + timedelta(days=1))
    require(control, kind)


# Roles.


@pytest.mark.parametrize("role", [role for role in RUNTIME_ROLES if role != "control"])
@each_kind
def test_only_control_revokes(session: Sessions, role: str, kind: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege) as raised:
        revoke(RevocationRepository(session(role)), kind)
    error: OrchestrationError = raised.value
    assert (error.sqlstate, error.invariant, error.retry) == ("42501", None, Retry.NEVER)


@pytest.mark.parametrize("role", ["readonly", "auditor"])
@each_kind
def test_a_role_that_only_reads_cannot_take_the_gate(
    session: Sessions, role: str, kind: str
) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        require(RevocationRepository(session(role)), kind)


@pytest.mark.parametrize("role", READERS)
def test_readers_ask_and_follow(
    session: Sessions, control: RevocationRepository, role: str
) -> None:
    made = revoke(control, "token")
    control._session.commit()
    reader = RevocationRepository(session(role))
    assert reader.is_token_revoked(HASH)
    assert not reader.is_client_cert_revoked(HASH)
    assert reader.since(None).revocations == (made,)


def test_the_executor_reads_no_revocations(session: Sessions) -> None:
    acts: tuple[Callable[[RevocationRepository], object], ...] = (
        lambda revocations: revocations.is_token_revoked(HASH),
        lambda revocations: revocations.is_client_cert_revoked(HASH),
        lambda revocations: revocations.since(None),
    )
    for act in acts:
        with session("executor") as one, pytest.raises(errors.InsufficientPrivilege):
            act(RevocationRepository(one))


# The caller's transaction.


def test_a_repository_never_commits(
    session: Sessions, engine: Callable[[str], Engine], owner: Connect
) -> None:
    ends: list[str] = []
    event.listen(engine("control"), "commit", lambda _: ends.append("commit"))
    event.listen(engine("control"), "rollback", lambda _: ends.append("rollback"))
    with session("control") as one:
        revocations = RevocationRepository(one)
        for kind in ("cert", "token"):
            revoke(revocations, kind)
            is_revoked(revocations, kind)
            require(revocations, kind, digest("another"))
        revocations.since(None)
        assert ends == []
        assert count(owner) == 0
        one.rollback()
    assert ends == ["rollback"]
    assert count(owner) == 0


def test_a_record_outlives_its_session_and_does_not_change(session: Sessions) -> None:
    with session("control") as one:
        revocations = RevocationRepository(one)
        made = revoke(revocations, "cert")
        page = revocations.since(None)
        one.commit()
        one.expire_all()
    assert type(made) is RevocationRecord
    assert type(page) is RevocationsSince
    assert page.revocations == (made,)
    with pytest.raises(ValidationError):
        made.hash = "other"
    with pytest.raises(ValidationError):
        page.watermark = "other"


@pytest.mark.invariant("INV-REV-005")
def test_an_expected_refusal_in_a_savepoint_leaves_the_transaction_usable(
    session: Sessions, owner: Connect
) -> None:
    with session("control") as one:
        revocations = RevocationRepository(one)
        with pytest.raises(errors.InvalidRevocation), one.begin_nested():
            revoke(revocations, "cert", revoked_at=datetime(2200, 1, 1, tzinfo=UTC))
        revoke(revocations, "cert")
        with pytest.raises(errors.CredentialRevoked), one.begin_nested():
            require(revocations, "cert")
        one.commit()
    assert count(owner) == 1


# Following: since.


def hashes(page: RevocationsSince) -> set[str]:
    return {revocation.hash for revocation in page.revocations}


def test_nothing_revoked_gives_a_watermark_all_the_same(control: RevocationRepository) -> None:
    page = control.since(None)
    assert page.revocations == ()
    assert control.since(page.watermark).revocations == ()


def test_since_tells_what_is_new_of_both_kinds(session: Sessions) -> None:
    with session("control") as one:
        revocations = RevocationRepository(one)
        revoke(revocations, "cert", digest(1))
        one.commit()
        first = revocations.since(None)
        assert hashes(first) == {digest(1)}
        one.commit()
        revoke(revocations, "token", digest(2))
        revoke(revocations, "cert", digest(3))
        one.commit()
        second = revocations.since(first.watermark)
        assert [revocation.hash for revocation in second.revocations] == [digest(2), digest(3)]
        one.commit()
        assert hashes(revocations.since(second.watermark)) == set()
        assert hashes(revocations.since(None)) == {digest(1), digest(2), digest(3)}


def test_an_imported_revocation_is_new_when_it_is_learnt(session: Sessions) -> None:
    with session("control") as one:
        revocations = RevocationRepository(one)
        watermark = revocations.since(None).watermark
        one.commit()
        revoke(revocations, "token", revoked_at=PAST, expires_at=PAST)
        one.commit()
        assert hashes(revocations.since(watermark)) == {HASH}


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_lower_transaction_that_commits_later_is_not_missed(
    session: Sessions, login: Callable[[str], Connect], isolation: str
) -> None:
    slow, fast = login("control"), login("control")
    slow.execute("BEGIN")
    lower = scalar(slow, "SELECT pg_current_xact_id()::text::bigint")
    with fast.transaction():
        fast.execute("SELECT orchestration.revoke_token(%s, 'unspecified')", (digest("fast"),))
        higher = scalar(fast, "SELECT pg_current_xact_id()::text::bigint")
    assert lower < higher

    with session("readonly") as one:
        one.connection(execution_options={"isolation_level": isolation})
        reader = RevocationRepository(one)
        page = reader.since(None)
        assert hashes(page) == {digest("fast")}
        one.rollback()

        slow.execute("SELECT orchestration.revoke_token(%s, 'unspecified')", (digest("slow"),))
        one.connection(execution_options={"isolation_level": isolation})
        assert hashes(reader.since(page.watermark)) == set()
        one.rollback()
        slow.execute("COMMIT")

        one.connection(execution_options={"isolation_level": isolation})
        page = reader.since(page.watermark)
        assert hashes(page) == {digest("slow")}
        one.rollback()
        assert hashes(reader.since(page.watermark)) == set()


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_since_within_a_transaction_that_has_written_misses_nothing(
    session: Sessions, login: Callable[[str], Connect], isolation: str
) -> None:
    slow = login("control")
    slow.execute("BEGIN")
    slow.execute("SELECT pg_current_xact_id()")
    with session("control") as one:
        one.connection(execution_options={"isolation_level": isolation})
        revocations = RevocationRepository(one)
        revoke(revocations, "cert", digest("own 1"))
        first = revocations.since(None)
        assert hashes(first) == {digest("own 1")}
        revoke(revocations, "cert", digest("own 2"))
        second = revocations.since(first.watermark)
        # Returning a revocation twice is allowed, missing one is not.
        assert digest("own 2") in hashes(second)
        one.commit()
    # The other transaction had a lower id and was open all the time.
    slow.execute("SELECT orchestration.revoke_token(%s, 'unspecified')", (digest("slow"),))
    slow.execute("COMMIT")
    with session("readonly") as other:
        reader = RevocationRepository(other)
        for watermark in (first.watermark, second.watermark):
            assert digest("slow") in hashes(reader.since(watermark))
        # A reader that continues from the writer's watermark gets the writer's own revocation
        # again.
        assert digest("own 2") in hashes(reader.since(first.watermark))


def test_a_writers_watermark_still_tells_what_it_writes_afterwards(session: Sessions) -> None:
    with session("control") as one:
        revocations = RevocationRepository(one)
        revoke(revocations, "token", digest(1))
        watermark = revocations.since(None).watermark
        revoke(revocations, "token", digest(2))
        one.commit()
        page = revocations.since(watermark)
        assert digest(2) in hashes(page)
        one.commit()
        assert hashes(revocations.since(page.watermark)) == set()


def test_a_revocation_in_a_savepoint_is_returned_and_an_undone_one_is_not(
    session: Sessions,
) -> None:
    with session("control") as one:
        revocations = RevocationRepository(one)
        watermark = revocations.since(None).watermark
        one.commit()
        with one.begin_nested():
            revoke(revocations, "token", digest("kept"))
        undone = one.begin_nested()
        revoke(revocations, "token", digest("undone"))
        undone.rollback()
        one.commit()
        page = revocations.since(watermark)
        assert hashes(page) == {digest("kept")}
        assert hashes(revocations.since(page.watermark)) == set()


def xmax(page: RevocationsSince) -> int:
    return int(page.watermark.split(":")[1])


def test_a_watermark_ends_with_the_last_transaction_that_is_known_to_be_durable(
    control: RevocationRepository, owner: Connect
) -> None:
    assert xmax(control.since(None)) == 3
    revoke(control, "token")
    control._session.commit()
    revoked = scalar(owner, "SELECT xact_id FROM orchestration.revoked_tokens")
    for _ in range(3):
        with owner.transaction(force_rollback=True):
            owner.execute("SELECT pg_current_xact_id()")
    page = control.since(None)
    assert xmax(page) == revoked + 1
    # The watermark needs no row to stay the same.
    assert control.since(page.watermark).watermark == page.watermark


@pytest.mark.superuser
def test_a_restored_transaction_id_is_not_taken_for_one_of_this_cluster(
    superuser: Connect, session: Sessions
) -> None:
    with superuser.transaction():
        storing = scalar(superuser, "SELECT pg_current_xact_id()::text::bigint")
        superuser.execute("SET LOCAL session_replication_role = replica")
        superuser.execute(
            "INSERT INTO orchestration.revoked_tokens (token_hash, revocation_no, revoked_at,"
            " recorded_at, reason_code, db_user, xact_id)"
            " VALUES (%s, 1, '2020-01-01Z', '2020-01-01Z', 'unspecified', 'elsewhere', %s)",
            (HASH, storing + 2),
        )
    for _ in range(5):
        with superuser.transaction(force_rollback=True):
            superuser.execute("SELECT pg_current_xact_id()")
    reader = RevocationRepository(session("readonly"))
    page = reader.since(None)
    assert hashes(page) == {HASH}
    assert xmax(page) <= storing + 1


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_since_writes_nothing(
    session: Sessions, control: RevocationRepository, isolation: str
) -> None:
    made = revoke(control, "cert")
    control._session.commit()
    with session("readonly") as one:
        one.connection(execution_options={"isolation_level": isolation})
        one.execute(text("SET TRANSACTION READ ONLY"))
        assert RevocationRepository(one).since(None).revocations == (made,)
        assert one.scalar(text("SELECT pg_current_xact_id_if_assigned()")) is None


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("role", READERS)
def test_a_watermark_ahead_of_the_snapshot_is_refused(session: Sessions, role: str) -> None:
    ahead = 10**12
    with pytest.raises(errors.InvalidParameterValue) as raised:
        RevocationRepository(session(role)).since(f"{ahead}:{ahead}:")
    error = raised.value
    assert (error.sqlstate, error.invariant, error.retry) == (
        "22023",
        "INV-API-001",
        Retry.NEVER,
    )
    assert error.detail is not None
    assert error.detail["p_watermark"] == f"{ahead}:{ahead}:"


@pytest.mark.parametrize("watermark", ["", "tomorrow", "2:1:"])
def test_a_watermark_that_is_none_is_refused(control: RevocationRepository, watermark: str) -> None:
    with pytest.raises(errors.InvalidTextRepresentation):
        control.since(watermark)


def test_each_call_is_one_round_trip(session: Sessions, engine: Callable[[str], Engine]) -> None:
    statements: list[str] = []
    with session("control") as one:
        one.execute(text("SELECT 1"))
        event.listen(
            engine("control"),
            "before_cursor_execute",
            lambda _c, _cur, statement, *_: statements.append(statement),
        )
        revocations = RevocationRepository(one)
        acts: tuple[Callable[[], object], ...] = (
            lambda: revoke(revocations, "cert"),
            lambda: revoke(revocations, "token"),
            lambda: is_revoked(revocations, "cert"),
            lambda: is_revoked(revocations, "token"),
            lambda: require(revocations, "cert", digest("another")),
            lambda: revocations.since(None),
        )
        for number, act in enumerate(acts, start=1):
            act()
            assert len(statements) == number
