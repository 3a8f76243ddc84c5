"""PolicyVersionRepository as the services use it: in the caller's transaction, as their roles."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, create_engine, event, pool
from sqlalchemy.orm import Session
from tools import scratch

from orchestration import errors, models
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import NewPolicyVersion, PolicyVersionRecord
from orchestration.repo import PolicyVersionRepository
from orchestration.vocabulary import PolicyStatus
from tests.support import Connect, activate_policy, digest

Sessions = Callable[[str], Session]

HOUR = timedelta(hours=1)
RUNTIME_ROLES = ("ingest", "executor", "control", "readonly", "auditor")


def new(id: str, *, by: str = "ops@example.com", content: str | None = None) -> NewPolicyVersion:
    return NewPolicyVersion(
        id=id, description=f"policy {id}", checksum=digest(content or id), created_by=by
    )


@pytest.fixture
def control(session: Sessions) -> PolicyVersionRepository:
    return PolicyVersionRepository(session("control"))


@pytest.fixture
def host_session(database: scratch.Database) -> Iterator[Session]:
    """A Session on an engine without error translation."""
    engine = create_engine(database.as_role("control"), poolclass=pool.NullPool)
    with Session(engine) as made:
        yield made
    engine.dispose()


def assert_refused(
    error: OrchestrationError,
    *,
    sqlstate: str,
    invariant: str,
    column: str | None,
    detail: dict[str, object],
    retry: Retry = Retry.NEVER,
) -> None:
    assert (error.sqlstate, error.invariant, error.constraint) == (sqlstate, invariant, invariant)
    assert (error.schema, error.table, error.column) == (
        "orchestration",
        "policy_versions",
        column,
    )
    assert error.detail == detail
    assert error.hint
    assert error.retry is retry
    assert str(error).startswith(f"{invariant}: ")
    assert isinstance(error.__cause__, psycopg.Error)


# Reading.


def test_before_the_first_rotation_there_is_nothing(control: PolicyVersionRepository) -> None:
    assert control.active() is None
    assert control.accepted() == []
    assert control.get("v1") is None


@pytest.mark.parametrize("role", RUNTIME_ROLES)
def test_every_role_reads_the_versions(session: Sessions, owner: Connect, role: str) -> None:
    for id in ("v1", "v2", "v3"):
        activate_policy(owner, id)
    versions = PolicyVersionRepository(session(role))
    active = versions.active()
    assert active is not None
    assert (active.id, active.status) == ("v3", PolicyStatus.ACTIVE)
    assert [(one.id, one.status) for one in versions.accepted()] == [
        ("v3", PolicyStatus.ACTIVE),
        ("v2", PolicyStatus.GRACE),
    ]
    retired = versions.get("v1")
    assert retired is not None
    assert retired.status == PolicyStatus.RETIRED
    assert retired.retired_at is not None


def test_a_grace_that_has_passed_is_accepted_no_more(control: PolicyVersionRepository) -> None:
    control.rotate(new("v1"), grace=HOUR)
    control.rotate(new("v2"), grace=timedelta(0))
    assert [one.id for one in control.accepted()] == ["v2"]
    passed = control.get("v1")
    assert passed is not None
    assert passed.status == PolicyStatus.GRACE


# Rotating and retiring.


def test_rotation_returns_the_version_as_it_was_stored(
    control: PolicyVersionRepository, session: Sessions
) -> None:
    made = control.rotate(new("v1"), grace=HOUR)
    assert made == PolicyVersionRecord(
        id="v1",
        description="policy v1",
        checksum=digest("v1"),
        status=PolicyStatus.ACTIVE,
        activated_at=made.activated_at,
        grace_expires_at=None,
        retired_at=None,
        created_at=made.created_at,
        created_by="ops@example.com",
        db_user=made.db_user,
    )
    assert made.activated_at.tzinfo is not None
    assert made.db_user.endswith("_control")
    assert control.get("v1") == made == control.active()


def test_a_record_has_its_status_as_a_word_of_the_vocabulary(
    control: PolicyVersionRepository,
) -> None:
    assert control.rotate(new("v1"), grace=HOUR).status is PolicyStatus.ACTIVE


def test_rotation_demotes_the_active_version_and_retires_the_one_in_grace(
    control: PolicyVersionRepository,
) -> None:
    before = datetime.now(UTC)
    for id in ("v1", "v2", "v3"):
        control.rotate(new(id), grace=HOUR)
    first, second, third = (control.get(id) for id in ("v1", "v2", "v3"))
    assert first is not None
    assert second is not None
    assert third is not None
    assert [first.status, second.status, third.status] == ["RETIRED", "GRACE", "ACTIVE"]
    assert first.activated_at < second.activated_at < third.activated_at
    assert second.grace_expires_at is not None
    assert second.grace_expires_at > before
    assert second.retired_at is None


@pytest.mark.parametrize(
    "grace",
    [
        timedelta(0),
        timedelta(microseconds=1),
        timedelta(days=400, hours=3, microseconds=7),
    ],
)
def test_a_grace_is_kept_to_the_microsecond(
    control: PolicyVersionRepository, owner: Connect, grace: timedelta
) -> None:
    control.rotate(new("v1"), grace=HOUR)
    made = control.rotate(new("v2"), grace=grace)
    demoted = control.get("v1")
    assert demoted is not None
    assert demoted.grace_expires_at is not None
    # One call reads the clock before the demotion and again after it.
    assert demoted.grace_expires_at <= made.activated_at + grace
    assert demoted.grace_expires_at > demoted.activated_at + grace


@pytest.mark.parametrize("days", range(30, 361, 30))
def test_a_day_of_grace_has_24_hours_whatever_the_logins_clocks_do(
    database: scratch.Database, superuser: Connect, control: PolicyVersionRepository, days: int
) -> None:
    name = database.as_role("control").username
    superuser.execute(
        f'ALTER ROLE "{name}" IN DATABASE "{database.name}" SET timezone = \'America/New_York\''
    )
    grace = timedelta(days=days)
    control.rotate(new("v1"), grace=HOUR)
    made = control.rotate(new("v2"), grace=grace)
    demoted = control.get("v1")
    assert demoted is not None
    assert demoted.grace_expires_at is not None
    # In UTC, because Python adds within a time zone by the wall clock.
    earliest, expires, latest = (
        demoted.activated_at.astimezone(UTC) + grace,
        demoted.grace_expires_at.astimezone(UTC),
        made.activated_at.astimezone(UTC) + grace,
    )
    assert earliest < expires <= latest


@pytest.mark.invariant("INV-API-001")
@pytest.mark.parametrize("grace", [timedelta(microseconds=-1), timedelta(days=-1, seconds=5)])
def test_a_negative_grace_is_refused(control: PolicyVersionRepository, grace: timedelta) -> None:
    with pytest.raises(errors.InvalidParameterValue) as raised:
        control.rotate(new("v1"), grace=grace)
    assert raised.value.detail is not None
    assert_refused(
        raised.value,
        sqlstate="22023",
        invariant="INV-API-001",
        column="grace_expires_at",
        detail={"id": "v1", "grace": raised.value.detail["grace"]},
    )


@pytest.mark.invariant("INV-POL-005")
def test_rotation_from_another_version_than_expected_is_a_conflict(
    control: PolicyVersionRepository,
) -> None:
    control.rotate(new("v1"), grace=HOUR)
    with pytest.raises(errors.ActivePolicyConflict) as raised:
        control.rotate(new("v3"), grace=HOUR, expected_active="v2")
    assert_refused(
        raised.value,
        sqlstate="P7104",
        invariant="INV-POL-005",
        column="status",
        detail={"id": "v3", "active": "v1", "expected_active": "v2"},
    )


def test_rotation_from_the_expected_version_takes_place(control: PolicyVersionRepository) -> None:
    control.rotate(new("v1"), grace=HOUR)
    assert control.rotate(new("v2"), grace=HOUR, expected_active="v1").id == "v2"


def test_an_id_that_exists_is_a_unique_violation(control: PolicyVersionRepository) -> None:
    control.rotate(new("v1"), grace=HOUR)
    with pytest.raises(errors.UniqueViolation) as raised:
        control.rotate(new("v1", content="other"), grace=HOUR)
    error = raised.value
    assert type(error) is errors.UniqueViolation
    assert (error.sqlstate, error.constraint) == ("23505", "pk_policy_versions")
    assert (error.schema, error.table) == ("orchestration", "policy_versions")
    assert error.detail is not None
    assert "v1" in str(error.detail["text"])
    assert error.retry is Retry.NEVER


@pytest.mark.invariant("INV-POL-004")
def test_a_version_in_grace_is_retired_before_its_time(control: PolicyVersionRepository) -> None:
    control.rotate(new("v1"), grace=HOUR)
    control.rotate(new("v2"), grace=HOUR)
    retired = control.retire("v1")
    assert (retired.id, retired.status) == ("v1", PolicyStatus.RETIRED)
    assert retired.retired_at is not None
    assert [one.id for one in control.accepted()] == ["v2"]


@pytest.mark.invariant("INV-POL-007")
def test_the_active_version_is_not_retired(control: PolicyVersionRepository) -> None:
    control.rotate(new("v1"), grace=HOUR)
    with pytest.raises(errors.LastActivePolicy) as raised:
        control.retire("v1")
    assert_refused(
        raised.value,
        sqlstate="P7103",
        invariant="INV-POL-007",
        column="status",
        detail={"id": "v1"},
    )


@pytest.mark.invariant("INV-POL-002")
def test_a_version_that_a_rotation_retired_is_not_retired_again(
    control: PolicyVersionRepository,
) -> None:
    for id in ("v1", "v2", "v3"):
        control.rotate(new(id), grace=HOUR)
    with pytest.raises(errors.InvalidPolicyTransition) as raised:
        control.retire("v1")
    assert_refused(
        raised.value,
        sqlstate="P7101",
        invariant="INV-POL-002",
        column="status",
        detail={"id": "v1", "from": "RETIRED", "to": "RETIRED"},
    )


@pytest.mark.invariant("INV-ATT-008")
@pytest.mark.parametrize(
    "act", [PolicyVersionRepository.retire, PolicyVersionRepository.require_accepted]
)
def test_an_unknown_version_is_not_accepted(
    control: PolicyVersionRepository, act: Callable[[PolicyVersionRepository, str], object]
) -> None:
    control.rotate(new("v1"), grace=HOUR)
    with pytest.raises(errors.PolicyNotAccepted) as raised:
        act(control, "v9")
    assert_refused(
        raised.value,
        sqlstate="P7105",
        invariant="INV-ATT-008",
        column="id",
        detail={"id": "v9"},
    )


@pytest.mark.invariant("INV-ATT-008")
@pytest.mark.parametrize("role", ["ingest", "executor", "control"])
def test_acceptance_is_required_by_those_who_act_under_it(
    session: Sessions, owner: Connect, role: str
) -> None:
    for id in ("v1", "v2", "v3"):
        activate_policy(owner, id)
    versions = PolicyVersionRepository(session(role))
    versions.require_accepted("v3")
    versions.require_accepted("v2")
    with pytest.raises(errors.PolicyNotAccepted):
        versions.require_accepted("v1")


# Roles.


@pytest.mark.parametrize("role", [role for role in RUNTIME_ROLES if role != "control"])
@pytest.mark.parametrize(
    "act",
    [
        lambda versions: versions.rotate(new("v2"), grace=HOUR),
        lambda versions: versions.retire("v1"),
    ],
    ids=["rotate", "retire"],
)
def test_only_control_changes_the_policy(
    session: Sessions,
    owner: Connect,
    role: str,
    act: Callable[[PolicyVersionRepository], object],
) -> None:
    activate_policy(owner, "v1")
    with pytest.raises(errors.InsufficientPrivilege) as raised:
        act(PolicyVersionRepository(session(role)))
    error = raised.value
    assert (error.sqlstate, error.invariant, error.retry) == ("42501", None, Retry.NEVER)
    assert isinstance(error.__cause__, psycopg.Error)


@pytest.mark.parametrize("role", ["readonly", "auditor"])
def test_a_role_that_only_reads_cannot_take_the_gate(
    session: Sessions, owner: Connect, role: str
) -> None:
    activate_policy(owner, "v1")
    with pytest.raises(errors.InsufficientPrivilege):
        PolicyVersionRepository(session(role)).require_accepted("v1")


# The caller's transaction.


def test_a_repository_never_commits(
    session: Sessions, engine: Callable[[str], Engine], owner: Connect
) -> None:
    ends: list[str] = []
    event.listen(engine("control"), "commit", lambda _: ends.append("commit"))
    event.listen(engine("control"), "rollback", lambda _: ends.append("rollback"))
    with session("control") as one:
        versions = PolicyVersionRepository(one)
        versions.rotate(new("v1"), grace=HOUR)
        versions.rotate(new("v2"), grace=HOUR)
        versions.retire("v1")
        versions.require_accepted("v2")
        versions.active()
        versions.accepted()
        versions.get("v1")
        assert ends == []
        assert owner.execute("SELECT count(*) FROM orchestration.policy_versions").fetchone() == (
            0,
        )
        one.rollback()
    assert ends == ["rollback"]
    assert owner.execute("SELECT count(*) FROM orchestration.policy_versions").fetchone() == (0,)


def test_an_emergency_is_one_transaction_of_the_caller(session: Sessions, owner: Connect) -> None:
    with session("control") as one:
        versions = PolicyVersionRepository(one)
        versions.rotate(new("v1"), grace=HOUR)
        one.commit()
        versions.rotate(new("v2"), grace=timedelta(0), expected_active="v1")
        versions.retire("v1")
        one.commit()
    assert owner.execute(
        "SELECT id, status FROM orchestration.policy_versions ORDER BY id"
    ).fetchall() == [("v1", "RETIRED"), ("v2", "ACTIVE")]


def test_a_record_outlives_its_session_and_does_not_change(session: Sessions) -> None:
    with session("control") as one:
        made = PolicyVersionRepository(one).rotate(new("v1"), grace=HOUR)
        one.commit()
        one.expire_all()
    assert (made.id, made.description, made.checksum) == ("v1", "policy v1", digest("v1"))
    with pytest.raises(ValidationError):
        made.description = "other"


def test_what_a_repository_returns_is_no_orm_object(
    session: Sessions, control: PolicyVersionRepository
) -> None:
    made = control.rotate(new("v1"), grace=HOUR)
    for one in (made, control.active(), control.get("v1"), *control.accepted()):
        assert type(one) is PolicyVersionRecord


@pytest.mark.invariant("INV-POL-007", "INV-POL-005")
def test_an_expected_refusal_in_a_savepoint_leaves_the_transaction_usable(
    session: Sessions, owner: Connect
) -> None:
    with session("control") as one:
        versions = PolicyVersionRepository(one)
        versions.rotate(new("v1"), grace=HOUR)
        with pytest.raises(errors.LastActivePolicy), one.begin_nested():
            versions.retire("v1")
        with pytest.raises(errors.ActivePolicyConflict), one.begin_nested():
            versions.rotate(new("v2"), grace=HOUR, expected_active="v0")
        with pytest.raises(errors.UniqueViolation), one.begin_nested():
            versions.rotate(new("v1", content="other"), grace=HOUR)
        versions.rotate(new("v2"), grace=HOUR)
        one.commit()
    assert owner.execute(
        "SELECT id, status FROM orchestration.policy_versions ORDER BY id"
    ).fetchall() == [("v1", "GRACE"), ("v2", "ACTIVE")]


def test_without_a_savepoint_a_refusal_fails_the_transaction(session: Sessions) -> None:
    with session("control") as one:
        versions = PolicyVersionRepository(one)
        versions.rotate(new("v1"), grace=HOUR)
        with pytest.raises(errors.LastActivePolicy):
            versions.retire("v1")
        with pytest.raises(errors.FailedTransaction):
            versions.active()
        one.rollback()
        assert versions.active() is None


def test_what_the_caller_has_pending_is_written_before_a_call(
    database: scratch.Database,
) -> None:
    engine = create_engine(database.url, poolclass=pool.NullPool)
    with Session(engine) as one:
        one.add(models.PolicyVersion(id="v1", description="x", checksum=digest("v1")))
        active = PolicyVersionRepository(one).active()
        assert active is not None
        assert active.id == "v1"
    engine.dispose()


def test_without_autoflush_a_call_writes_nothing_of_the_callers(
    database: scratch.Database,
) -> None:
    engine = create_engine(database.url, poolclass=pool.NullPool)
    with Session(engine, autoflush=False) as one:
        one.add(models.PolicyVersion(id="v1", description="x", checksum=digest("v1")))
        assert PolicyVersionRepository(one).active() is None
    engine.dispose()


# A host's own engine.


@pytest.mark.invariant("INV-POL-007", "INV-POL-002")
def test_inside_a_call_errors_are_typed_on_any_engine(host_session: Session) -> None:
    versions = PolicyVersionRepository(host_session)
    versions.rotate(new("v1"), grace=HOUR)
    host_session.commit()
    with pytest.raises(errors.LastActivePolicy) as raised:
        versions.retire("v1")
    assert_refused(
        raised.value,
        sqlstate="P7103",
        invariant="INV-POL-007",
        column="status",
        detail={"id": "v1"},
    )
    with pytest.raises(errors.FailedTransaction):
        versions.active()
    host_session.rollback()
    with pytest.raises(errors.UniqueViolation):
        versions.rotate(new("v1", content="other"), grace=HOUR)
