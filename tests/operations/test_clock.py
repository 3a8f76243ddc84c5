"""If the clock of the server is set back, what was rejected stays rejected.

libfaketime moves the clock of the whole server.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import sessionmaker
from tools import scratch

from orchestration.database import create_engine
from orchestration.repo import RevocationRepository
from tests.operations.restartable import restartable
from tests.support import (
    Connect,
    activate_policy,
    assert_invariant,
    connect,
    digest,
    refusal,
    scalar,
)

pytestmark = pytest.mark.own_cluster

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
SETTINGS = {"fsync": "off", "autovacuum": "off"}
FUTURE, STEPPED_BACK = 30, 10
"""The clock, in seconds from the true time: first forward, then 20 s back."""


@dataclass(frozen=True)
class Clocked:
    """A migrated database on a server whose clock follows a file."""

    database: scratch.Database
    offset: Path
    opened: ExitStack

    def set(self, seconds: int) -> None:
        self.offset.write_text(f"{seconds:+d}\n")

    def login(self, role: str) -> Connect:
        return self.opened.enter_context(connect(self.database.as_role(role)))


@pytest.fixture(scope="module")
def moved() -> Iterator[tuple[scratch.Database, Path]]:
    if not LIBRARIES:
        pytest.skip("not run: libfaketime is not installed (Debian's package faketime)")
    with restartable(SETTINGS) as server:
        offset = server.directory / "clock"
        offset.write_text("+0\n")
        offset.chmod(0o644)
        server.start(
            {
                "LD_PRELOAD": str(LIBRARIES[0]),
                "FAKETIME_TIMESTAMP_FILE": str(offset),
                # The server measures waits with the monotonic clock, and reads the file at every
                # look at the clock.
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DISABLE_SHM": "1",
            }
        )
        with scratch.database(server.server) as database:
            yield database, offset


@pytest.fixture
def clocked(moved: tuple[scratch.Database, Path]) -> Iterator[Clocked]:
    database, offset = moved
    with ExitStack() as opened:
        clock = Clocked(database, offset, opened)
        clock.set(0)
        yield clock


def attestation(caller: str, key: str, policy: str, **fields: str) -> str:
    item = {
        "caller_identity": caller,
        "idempotency_key": key,
        "payload_hash": digest(key),
        "policy_version_id": policy,
        **fields,
    }
    return (
        "SELECT id, attested_at FROM orchestration.append_attestations("
        f"jsonb_build_array('{json.dumps(item)}'::jsonb))"
    )


def attest(ingest: Connect, *attested: str, **fields: str) -> tuple[Any, datetime]:
    row = ingest.execute(attestation(*attested, **fields)).fetchone()
    assert row is not None
    id, attested_at = row
    return id, attested_at


def receive(ingest: Connect, attestation_id: object, policy: str, key: str) -> str:
    instruction = {
        "participant_id": "p",
        "idempotency_key": key,
        "instruction_type": "pain.001",
        "end_to_end_id": key,
        "amount_minor": 100,
        "currency": "EUR",
        "debtor_account": "debtor",
        "creditor_account": "creditor",
        "payload": {},
        "attestation_id": str(attestation_id),
        "policy_version_id": policy,
    }
    return str(
        scalar(
            ingest,
            "SELECT id FROM orchestration.receive_instruction(jsonb_build_array(%s::jsonb))",
            (json.dumps(instruction),),
        )
    )


CREDENTIALS = {
    "certificate": (
        *("client_cert_fingerprint_sha256", "revoke_client_cert", "revoked_client_certs"),
        RevocationRepository.is_client_cert_revoked,
    ),
    "token": (
        *("token_hash", "revoke_token", "revoked_tokens"),
        RevocationRepository.is_token_revoked,
    ),
}


@pytest.mark.invariant("INV-REV-007", "INV-ATT-009", "INV-INS-010")
@pytest.mark.parametrize("credential", CREDENTIALS)
def test_a_revoked_credential_stays_refused(clocked: Clocked, credential: str) -> None:
    field, function, table, is_revoked = CREDENTIALS[credential]
    control, ingest, executor = (clocked.login(role) for role in ("control", "ingest", "executor"))
    hash, policy = digest(credential), activate_policy(control, credential)
    id, _ = attest(ingest, "revoked", credential, policy, **{field: hash})
    instruction = receive(ingest, id, policy, credential)
    revoke = f"SELECT * FROM orchestration.{function}('{hash}', 'keyCompromise')"

    clocked.set(FUTURE)
    recorded = control.execute(revoke).fetchall()
    clocked.set(STEPPED_BACK)
    assert recorded[0][2] > scalar(control, "SELECT clock_timestamp()")

    again = attestation("revoked", f"{credential} again", policy, **{field: hash})
    assert_invariant(refusal(ingest, again), "INV-ATT-009", "P7202", table)
    required = f"SELECT orchestration.require_credential_not_revoked(p_{field} => '{hash}')"
    assert_invariant(refusal(ingest, required), "INV-ATT-009", "P7202", table)
    authorized = f"SELECT orchestration.authorize_instruction('{instruction}', 1)"
    assert_invariant(refusal(executor, authorized), "INV-INS-010", "P7202", table)
    engine = create_engine(clocked.database.as_role("readonly"))
    with sessionmaker(engine)() as session:
        assert is_revoked(RevocationRepository(session), hash)
    engine.dispose()
    # Revoking again returns the recorded revocation, which is in force.
    assert control.execute(revoke).fetchall() == recorded


@pytest.mark.invariant("INV-REV-007")
def test_a_hold_that_has_expired_may_come_back_into_force(clocked: Clocked) -> None:
    control, ingest = clocked.login("control"), clocked.login("ingest")
    control.execute(
        "SELECT orchestration.revoke_token(p_token_hash => %s, p_reason_code => 'certificateHold',"
        " p_expires_at => clock_timestamp() + interval '20 s')",
        (digest("hold"),),
    )
    required = f"SELECT orchestration.require_credential_not_revoked(NULL, '{digest('hold')}')"
    clocked.set(FUTURE)
    ingest.execute(required)
    clocked.set(STEPPED_BACK)
    assert_invariant(refusal(ingest, required), "INV-ATT-009", "P7202", "revoked_tokens")


@pytest.mark.invariant("INV-REV-007", "INV-ATT-008", "INV-ATT-011")
def test_a_grace_that_a_caller_has_seen_expire_stays_expired(clocked: Clocked) -> None:
    control, ingest = clocked.login("control"), clocked.login("ingest")
    activate_policy(control, "old")
    activate_policy(control, "new", "20 s")
    attest(ingest, "caller", "in grace", "old")

    clocked.set(FUTURE)
    expired = attestation("caller", "expired", "old")
    assert_invariant(refusal(ingest, expired), "INV-ATT-008", "P7105", "policy_versions")
    _, newest = attest(ingest, "caller", "newest", "new")

    clocked.set(STEPPED_BACK)
    assert newest > scalar(control, "SELECT clock_timestamp()")
    assert_invariant(refusal(ingest, expired), "INV-ATT-008", "P7105", "policy_versions")
    for key in ("after", "and after"):
        assert attest(ingest, "caller", key, "new")[1] == newest
    clocked.set(FUTURE + 10)
    assert attest(ingest, "caller", "caught up", "new")[1] > newest
    report = "SELECT ok FROM orchestration.verify_attestation_chain('caller')"
    assert scalar(control, report)


def test_an_item_waits_until_the_clock_is_where_it_was(clocked: Clocked) -> None:
    control, ingest, executor = (clocked.login(role) for role in ("control", "ingest", "executor"))
    policy = activate_policy(control, "items")
    id, _ = attest(ingest, "items", "items", policy)
    instruction = receive(ingest, id, policy, "items")
    executor.execute("SELECT orchestration.authorize_instruction(%s, 1)", (instruction,))
    item = {
        "instruction_id": instruction,
        "participant_id": "p",
        "idempotency_key": "item",
        "rail_type": "rail",
        "payload": {},
    }

    def claim(worker: str) -> int:
        return executor.execute(
            "SELECT FROM orchestration.claim_outbox_batch(%s, 1, '20 s')", (worker,)
        ).rowcount

    clocked.set(FUTURE)
    executor.execute(
        "SELECT orchestration.enqueue_payment_outbox(jsonb_build_array(%s::jsonb))",
        (json.dumps(item),),
    )
    clocked.set(STEPPED_BACK)
    assert claim("early") == 0
    clocked.set(FUTURE + 1)
    assert claim("holds") == 1
    # The lease ends at 51 s and not before, whatever the clock showed in between.
    clocked.set(STEPPED_BACK)
    clocked.set(FUTURE + 10)
    assert claim("waits") == 0
    clocked.set(FUTURE + 60)
    assert claim("takes over") == 1
