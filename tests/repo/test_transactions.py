"""run_in_transaction repeats a unit from its start if that is safe, and otherwise does not."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, pool, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration import errors, schema, transactions
from orchestration.errors import OrchestrationError, Retry
from orchestration.records import NewPolicyVersion, PolicyVersionRecord
from orchestration.repo import PolicyVersionRepository
from orchestration.transactions import run_in_transaction
from tests.support import Connect, activate_policy, digest

Factory = Callable[[], Session]


def new(id: str, content: str = "test") -> NewPolicyVersion:
    return NewPolicyVersion(
        id=id, description="test", checksum=digest(id, content), created_by="test"
    )


def classes(root: type[OrchestrationError] = OrchestrationError) -> list[type[OrchestrationError]]:
    return [root, *(found for child in root.__subclasses__() for found in classes(child))]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "LONGEST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(transactions, "PAUSE_SECONDS", 0.001)


@pytest.fixture
def control(engine: Callable[[str], Engine]) -> Factory:
    return sessionmaker(engine("control"))


@pytest.fixture
def host(database: scratch.Database) -> Iterator[Factory]:
    """Sessions on an engine without error translation."""
    engine = create_engine(database.url, poolclass=pool.NullPool)
    yield sessionmaker(engine)
    engine.dispose()


def test_the_result_is_returned_and_the_work_committed(control: Factory, owner: Connect) -> None:
    made = run_in_transaction(
        control,
        lambda session: PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0)),
    )
    assert (made.id, made.status) == ("v1", "ACTIVE")
    assert owner.execute("SELECT id FROM orchestration.policy_versions").fetchall() == [("v1",)]


@pytest.mark.parametrize(
    "cls", [cls for cls in classes() if cls().retry is Retry.SAFE], ids=lambda cls: cls.__name__
)
def test_what_is_safe_is_run_again_in_a_session_of_its_own(
    control: Factory, cls: type[OrchestrationError]
) -> None:
    sessions: list[Session] = []

    def work(session: Session) -> int:
        sessions.append(session)
        if len(sessions) < 3:
            raise cls
        return len(sessions)

    assert run_in_transaction(control, work) == 3
    assert len({id(session) for session in sessions}) == 3


@pytest.mark.parametrize(
    "cls", [cls for cls in classes() if cls().retry is not Retry.SAFE], ids=lambda cls: cls.__name__
)
def test_what_is_not_safe_is_not_run_again(control: Factory, cls: type[OrchestrationError]) -> None:
    tries = []

    def work(session: Session) -> None:
        tries.append(session)
        raise cls("the first and only")

    with pytest.raises(cls, match="the first and only"):
        run_in_transaction(control, work)
    assert len(tries) == 1


def test_an_error_of_the_caller_is_not_run_again(control: Factory) -> None:
    tries = []

    def work(session: Session) -> None:
        tries.append(session)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_in_transaction(control, work)
    assert len(tries) == 1


def test_it_gives_up_with_the_last_error(control: Factory) -> None:
    tries = 0

    def work(_session: Session) -> None:
        nonlocal tries
        tries += 1
        raise errors.SerializationFailure(f"try {tries}")

    with pytest.raises(errors.SerializationFailure, match=f"try {transactions.ATTEMPTS}"):
        run_in_transaction(control, work)
    assert tries == transactions.ATTEMPTS


def test_a_deadline_takes_the_place_of_the_number_of_tries(control: Factory) -> None:
    tries = 0

    def work(_session: Session) -> int:
        nonlocal tries
        tries += 1
        if tries < 3 * transactions.ATTEMPTS:
            raise errors.ConnectionLost
        return tries

    made = run_in_transaction(control, work, deadline=timedelta(minutes=1))
    assert made == tries == 3 * transactions.ATTEMPTS


@pytest.mark.parametrize("seconds", [-1, 0])
def test_after_its_deadline_a_unit_is_not_run_again(control: Factory, seconds: int) -> None:
    tries = 0

    def work(_session: Session) -> None:
        nonlocal tries
        tries += 1
        raise errors.ConnectionLost(f"try {tries}")

    with pytest.raises(errors.ConnectionLost, match="try 1"):
        run_in_transaction(control, work, deadline=timedelta(seconds=seconds))


def test_the_last_try_starts_at_the_deadline(
    control: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "PAUSE_SECONDS", 60.0)
    tries = 0

    def work(_session: Session) -> None:
        nonlocal tries
        tries += 1
        raise errors.DiskFull(f"try {tries}")

    with pytest.raises(errors.DiskFull, match="try 2"):
        run_in_transaction(control, work, deadline=timedelta(milliseconds=50))


def test_a_deadline_is_a_timedelta(control: Factory) -> None:
    with pytest.raises(TypeError, match="deadline: expected a timedelta, got int"):
        run_in_transaction(control, lambda _: None, deadline=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", [errors.DiskFull, errors.OutOfMemory])
def test_a_server_without_room_is_left_alone_for_a_while(
    control: Factory, monkeypatch: pytest.MonkeyPatch, cls: type[OrchestrationError]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(transactions, "PAUSE_SECONDS", 5.0)
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    tries = 0

    def work(_session: Session) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise cls
        if tries == 2:
            raise errors.SerializationFailure

    run_in_transaction(control, work)
    assert 2.5 <= waits[0] <= 5
    assert waits[1] <= 0.001


def test_an_unknown_outcome_is_run_again_only_if_the_unit_says_that_it_may(
    host: Factory, superuser: Connect
) -> None:
    superuser.execute(COMMIT_RAISES.format(code="57P01"))

    def work(session: Session) -> object:
        return session.execute(text("INSERT INTO public.hosts VALUES (1)"))

    with pytest.raises(errors.CommitOutcomeUnknown):
        run_in_transaction(host, work)
    run_in_transaction(host, work, replayable=True)
    assert superuser.execute("SELECT last_value FROM public.tries").fetchone() == (3,)


def test_every_function_that_is_known_to_write_is_one_of_ours() -> None:
    """A stale name would cost a round trip, one that only reads an unknown outcome."""
    expected = schema.expected()
    for name in transactions.WRITING_FUNCTIONS:
        body = expected[f"functions/{name}"]
        assert "STABLE" not in body
        assert "RETURNS" in body


def test_what_a_failed_try_wrote_is_undone(control: Factory, owner: Connect) -> None:
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        PolicyVersionRepository(session).rotate(new(f"v{tries}"), grace=timedelta(0))
        if tries == 1:
            raise errors.DeadlockDetected

    run_in_transaction(control, work)
    assert owner.execute("SELECT id FROM orchestration.policy_versions").fetchall() == [("v2",)]


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_after_a_serialization_failure_everything_is_read_again(
    database: scratch.Database,
    engine: Callable[[str], Engine],
    owner: Connect,
    isolation: Any,
) -> None:
    activate_policy(owner, "v1")
    seen: list[PolicyVersionRecord | None] = []

    def work(session: Session) -> str:
        versions = PolicyVersionRepository(session)
        active = versions.active()
        seen.append(active)
        if len(seen) == 1:
            activate_policy(owner, "v2")
        assert active is not None
        return versions.rotate(new("v3"), grace=timedelta(0), expected_active=active.id).id

    factory = sessionmaker(engine("control").execution_options(isolation_level=isolation))
    assert run_in_transaction(factory, work) == "v3"
    assert [active.id for active in seen if active] == ["v1", "v2"]


@pytest.mark.invariant("INV-POL-007")
def test_a_refusal_at_commit_comes_out_typed_and_once(
    database: scratch.Database, host: Factory, owner: Connect
) -> None:
    activate_policy(owner, "v1")
    tries = []

    def work(session: Session) -> None:
        tries.append(session)
        session.execute(
            text(
                "UPDATE orchestration.policy_versions"
                " SET status = 'GRACE', grace_expires_at = clock_timestamp()"
            )
        )

    with pytest.raises(errors.LastActivePolicy) as raised:
        run_in_transaction(host, work)
    assert isinstance(raised.value.__cause__, psycopg.Error)
    assert len(tries) == 1


COMMIT_RAISES = """
CREATE TABLE public.hosts (id integer);
CREATE SEQUENCE public.tries;
CREATE FUNCTION public.at_commit() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
  IF nextval('public.tries') < 3 THEN
    RAISE EXCEPTION 'the hosts own' USING ERRCODE = '{code}';
  END IF;
  RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON public.hosts
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.at_commit()
"""


def test_a_serialization_failure_at_commit_is_run_again_on_a_hosts_engine_too(
    host: Factory, superuser: Connect
) -> None:
    superuser.execute(COMMIT_RAISES.format(code="40001"))
    run_in_transaction(
        host, lambda session: session.execute(text("INSERT INTO public.hosts VALUES (1)"))
    )
    assert superuser.execute("SELECT last_value FROM public.tries").fetchone() == (3,)
    assert superuser.execute("SELECT count(*) FROM public.hosts").fetchone() == (1,)


@pytest.mark.parametrize("code", ["40001", "40P01", "55P03", "53100", "53200", "57P01", "25006"])
def test_a_safe_error_of_the_hosts_own_table_is_run_again_on_its_own_engine(
    host: Factory, superuser: Connect, code: str
) -> None:
    superuser.execute(COMMIT_RAISES.format(code=code))

    def work(session: Session) -> None:
        session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        session.execute(text("INSERT INTO public.hosts VALUES (1)"))

    run_in_transaction(host, work)
    assert superuser.execute("SELECT last_value FROM public.tries").fetchone() == (3,)
    assert superuser.execute("SELECT count(*) FROM public.hosts").fetchone() == (1,)


@pytest.mark.parametrize("whose", ["host", "control"])
def test_a_refusal_that_was_swallowed_is_never_reported_as_a_commit(
    request: pytest.FixtureRequest, owner: Connect, whose: str
) -> None:
    """The server answers COMMIT of a failed transaction with ROLLBACK, and raises nothing."""

    def work(session: Session) -> PolicyVersionRecord:
        made = PolicyVersionRepository(session).rotate(new("v1"), grace=timedelta(0))
        with contextlib.suppress(errors.UniqueViolation):
            PolicyVersionRepository(session).rotate(new("v1", "other"), grace=timedelta(0))
        return made

    factory: Factory = request.getfixturevalue(whose)
    with pytest.raises(errors.FailedTransaction, match="failed earlier") as raised:
        run_in_transaction(factory, work)
    assert raised.value.sqlstate == "25P02"
    cause = raised.value.__cause__
    assert cause is not None
    assert "uq" in str(cause) or "pk_policy_versions" in str(cause)
    assert owner.execute("SELECT FROM orchestration.policy_versions").fetchall() == []


def test_an_unknown_outcome_at_commit_is_not_run_again_on_a_hosts_engine_either(
    host: Factory, superuser: Connect
) -> None:
    superuser.execute(COMMIT_RAISES.format(code="57P01"))
    with pytest.raises(errors.CommitOutcomeUnknown):
        run_in_transaction(
            host, lambda session: session.execute(text("INSERT INTO public.hosts VALUES (1)"))
        )
    assert superuser.execute("SELECT last_value FROM public.tries").fetchone() == (1,)


def test_a_hosts_own_refusal_at_commit_passes_unchanged(host: Factory, superuser: Connect) -> None:
    superuser.execute(COMMIT_RAISES.format(code="P0001"))
    with pytest.raises(DBAPIError, match="the hosts own"):
        run_in_transaction(
            host, lambda session: session.execute(text("INSERT INTO public.hosts VALUES (1)"))
        )


def test_a_lock_that_was_not_free_is_tried_again(
    control: Factory, owner: Connect, superuser: Connect
) -> None:
    activate_policy(owner, "v1")
    owner.execute("BEGIN")
    owner.execute("LOCK TABLE orchestration.policy_gate IN ROW SHARE MODE")
    tries = []

    def work(session: Session) -> None:
        tries.append(session)
        session.execute(text("SET LOCAL lock_timeout = '50ms'"))
        if len(tries) == 2:
            owner.execute("COMMIT")
        session.execute(text("LOCK TABLE orchestration.policy_gate IN EXCLUSIVE MODE"))

    superuser.execute("GRANT UPDATE ON orchestration.policy_gate TO symphony_control")
    run_in_transaction(control, work)
    assert len(tries) == 2
