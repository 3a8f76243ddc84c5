"""If a privilege is granted by mistake, the guard rejects its use with its own error, at COMMIT at
the latest."""

from collections.abc import Callable

import pytest

from orchestration import schema
from tests.migrations import evidence
from tests.roles.matrix import EVIDENCE, RUNTIME_ROLES
from tests.support import Connect, Refusal, assert_invariant, refusal

Login = Callable[[str], Connect]

EVERY_RUNTIME_GROUP = ", ".join(f"symphony_{role}" for role in RUNTIME_ROLES)
WRITES = ("UPDATE", "DELETE", "TRUNCATE")


@pytest.fixture
def filled(superuser: Connect, owner: Connect) -> None:
    """Insert evidence into every table, and grant every write to every runtime role."""
    evidence.fill(superuser, schema.REVISION)
    owner.execute(
        "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA orchestration"
        f" TO {EVERY_RUNTIME_GROUP}"
    )


def guarded(table: str, invariant: str, sqlstate: str, *verbs: str) -> list[object]:
    return [
        pytest.param(
            table,
            verb,
            invariant,
            sqlstate,
            id=f"{verb.lower()}-{table}",
            marks=pytest.mark.invariant(invariant),
        )
        for verb in verbs
    ]


def attack(login: Connect, table: str, verb: str) -> Refusal:
    statement = {
        "UPDATE": f"UPDATE orchestration.{table} SET xact_id = 0",
        "DELETE": f"DELETE FROM orchestration.{table}",
        # Without CASCADE the server rejects TRUNCATE of a referenced table before any trigger
        # fires.
        "TRUNCATE": f"TRUNCATE orchestration.{table} CASCADE",
    }[verb]
    return refusal(login, statement)


GUARDED = [
    *guarded("audit_log", "INV-APP-001", "P0001", *WRITES),
    *guarded("audit_log_head", "INV-AUD-001", "P0001", "DELETE", "TRUNCATE"),
    *guarded("schema_revision", "INV-AUD-001", "P0001", "DELETE", "TRUNCATE"),
    *guarded("kill_switches", "INV-APP-001", "P0001", *WRITES),
    *guarded("kill_switch_gate", "INV-KIL-002", "P0001", "DELETE", "TRUNCATE"),
    *guarded("policy_versions", "INV-POL-001", "P7101", "UPDATE"),
    *guarded("policy_versions", "INV-POL-006", "P7102", "DELETE", "TRUNCATE"),
    *guarded("policy_gate", "INV-ATT-008", "P0001", "DELETE", "TRUNCATE"),
    *guarded("revoked_client_certs", "INV-REV-001", "P0001", *WRITES),
    *guarded("revoked_tokens", "INV-REV-001", "P0001", *WRITES),
    *guarded("revocation_gate", "INV-ATT-009", "P0001", "DELETE", "TRUNCATE"),
    *guarded("ingress_attestations", "INV-ATT-001", "P0001", *WRITES),
    *guarded("ingress_attestation_events", "INV-ATT-001", "P0001", *WRITES),
    *guarded("ingress_attestation_heads", "INV-ATT-005", "P0001", "DELETE", "TRUNCATE"),
    *guarded("instructions", "INV-INS-002", "P7401", "UPDATE"),
    *guarded("instructions", "INV-INS-002", "P0001", "DELETE", "TRUNCATE"),
    *guarded("status_history", "INV-APP-001", "P0001", *WRITES),
    *guarded("execution_attempts", "INV-APP-001", "P0001", *WRITES),
    *guarded("transaction_attempts", "INV-APP-001", "P0001", *WRITES),
    *guarded("payment_outbox_items", "INV-OUT-001", "P0001", *WRITES),
    *guarded("payment_outbox_attempts", "INV-OUT-001", "P0001", *WRITES),
    *guarded("payment_outbox_late_results", "INV-APP-001", "P0001", *WRITES),
    *guarded("payment_outbox_interventions", "INV-APP-001", "P0001", *WRITES),
    *guarded("payment_outbox_pending", "INV-OUT-009", "P7006", "DELETE", "TRUNCATE"),
    *guarded("participant_outbox_sequences", "INV-OUT-007", "P0001", "DELETE", "TRUNCATE"),
]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("table", "verb", "invariant", "sqlstate"), GUARDED)
def test_a_stray_write_is_rejected_by_the_guard(
    login: Login, table: str, verb: str, invariant: str, sqlstate: str
) -> None:
    assert_invariant(attack(login("readonly"), table, verb), invariant, sqlstate, table)


def test_every_table_of_evidence_is_attacked() -> None:
    attacked = {(case.values[0], case.values[1]) for case in GUARDED}
    assert {(table, verb) for table in EVIDENCE for verb in WRITES} <= attacked


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-POL-010")
def test_a_stray_insert_of_a_policy_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("ingest"),
        "INSERT INTO orchestration.policy_versions (id, description, checksum, status)"
        " VALUES ('forged', 'forged', repeat('0', 64), 'GRACE')",
    )
    assert_invariant(found, "INV-POL-010", "P7101", "policy_versions")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-POL-007")
def test_a_stray_demotion_is_rejected_by_the_guard_at_commit(login: Login) -> None:
    """Up to 17, a deferred trigger runs with the privileges of the login at COMMIT."""
    ingest = login("ingest")
    ingest.execute(
        "UPDATE orchestration.policy_versions SET status = 'RETIRED' WHERE status = 'GRACE'"
    )
    found = refusal(
        ingest,
        "UPDATE orchestration.policy_versions"
        " SET status = 'GRACE', grace_expires_at = clock_timestamp() WHERE status = 'ACTIVE'",
    )
    assert_invariant(found, "INV-POL-007", "P7103", "policy_versions")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-REV-003")
@pytest.mark.parametrize(
    ("table", "column"),
    [("revoked_client_certs", "cert_fingerprint_sha256"), ("revoked_tokens", "token_hash")],
)
def test_a_stray_insert_of_a_revocation_is_rejected_by_the_guard(
    login: Login, table: str, column: str
) -> None:
    found = refusal(
        login("ingest"),
        f"INSERT INTO orchestration.{table} ({column}, reason_code, revoked_by)"
        " VALUES ('no hash', 'unspecified', 'test')",
    )
    assert_invariant(found, "INV-REV-003", "P7201", table)


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-ATT-002")
def test_a_stray_insert_of_an_attestation_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "INSERT INTO orchestration.ingress_attestations (caller_identity, idempotency_key,"
        " payload_hash, policy_version_id, execution_completed, terminal_status)"
        " VALUES ('caller', 'forged', repeat('0', 64), 'v2', true, 'SUCCESS')",
    )
    assert_invariant(found, "INV-ATT-002", "P7301", "ingress_attestations")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-ATT-010")
def test_a_stray_insert_of_an_event_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "INSERT INTO orchestration.ingress_attestation_events (attestation_id, event)"
        " SELECT a.attestation_id, 'EXECUTION_COMPLETED'"
        " FROM orchestration.ingress_attestation_status a WHERE NOT a.execution_started",
    )
    assert found.sqlstate == "P7301"


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-OUT-009")
def test_a_stray_item_without_its_pending_row_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "INSERT INTO orchestration.payment_outbox_items (outbox_id, instruction_id,"
        " participant_id, idempotency_key, rail_type, payload)"
        " VALUES (gen_random_uuid(), gen_random_uuid(), 'participant', 'forged', 'rail', '{}')",
    )
    assert_invariant(found, "INV-OUT-009", "P7006", "payment_outbox_items")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-OUT-009")
def test_a_stray_pending_row_without_its_item_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "INSERT INTO orchestration.payment_outbox_pending (outbox_id, instruction_id,"
        " participant_id, sequence_id, rail_type)"
        " SELECT gen_random_uuid(), i.id, i.participant_id, 9, 'rail'"
        " FROM orchestration.instructions i WHERE i.open",
    )
    assert_invariant(found, "INV-OUT-009", "P7006", "payment_outbox_pending")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-INS-006")
def test_a_stray_pending_row_of_an_instruction_that_is_not_open_is_rejected_by_the_foreign_key(
    login: Login,
) -> None:
    found = refusal(
        login("readonly"),
        "WITH i AS (INSERT INTO orchestration.payment_outbox_items (outbox_id, instruction_id,"
        " participant_id, idempotency_key, rail_type, payload)"
        " SELECT gen_random_uuid(), i.id, i.participant_id, 'forged', 'rail', '{}'"
        " FROM orchestration.instructions i WHERE NOT i.open RETURNING *)"
        " INSERT INTO orchestration.payment_outbox_pending (outbox_id, instruction_id,"
        " participant_id, sequence_id, rail_type)"
        " SELECT outbox_id, instruction_id, participant_id, sequence_id, rail_type FROM i",
    )
    assert (found.sqlstate, found.table, found.constraint) == (
        "23503",
        "payment_outbox_pending",
        "fk_payment_outbox_pending_participant_id_instruction_id_open",
    )


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-INS-001")
def test_a_stray_leap_of_an_instruction_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "UPDATE orchestration.instructions SET state = 'COMPLETED' WHERE state = 'RECEIVED'",
    )
    assert_invariant(found, "INV-INS-001", "P7401", "instructions")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-INS-001")
def test_a_stray_instruction_that_enters_authorized_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "INSERT INTO orchestration.instructions (participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, attestation_id, policy_version_id, state)"
        " SELECT participant_id, 'forged', instruction_type, end_to_end_id, amount_minor,"
        " currency, debtor_account, creditor_account, payload, attestation_id,"
        " policy_version_id, 'AUTHORIZED' FROM orchestration.instructions LIMIT 1",
    )
    assert_invariant(found, "INV-INS-001", "P7401", "instructions")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-INS-004")
def test_a_stray_row_of_history_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "INSERT INTO orchestration.status_history"
        " (instruction_id, version, participant_id, from_state, to_state)"
        " SELECT id, version + 1, participant_id, 'RECEIVED', 'AUTHORIZED'"
        " FROM orchestration.instructions WHERE state = 'RECEIVED'",
    )
    assert_invariant(found, "INV-INS-004", "P0001", "status_history")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-APP-002")
@pytest.mark.parametrize(
    ("table", "columns", "values"),
    [
        ("execution_attempts", "worker_id", "'forger'"),
        ("transaction_attempts", "worker_id, rail_type", "'forger', 'rail'"),
    ],
)
def test_a_stray_attempt_of_an_instruction_is_rejected_by_the_guard(
    login: Login, table: str, columns: str, values: str
) -> None:
    found = refusal(
        login("readonly"),
        f"INSERT INTO orchestration.{table} (instruction_id, attempt_no, phase, {columns})"
        f" SELECT id, 7, 'OPEN', {values} FROM orchestration.instructions LIMIT 1",
    )
    assert_invariant(found, "INV-APP-002", "P7401", table)


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-INS-006")
def test_a_stray_end_of_an_instruction_with_a_live_item_is_rejected_by_the_foreign_key(
    login: Login,
) -> None:
    readonly = login("readonly")
    readonly.execute(
        "UPDATE orchestration.instructions SET state = 'EXECUTING' WHERE state = 'AUTHORIZED'"
    )
    found = refusal(
        readonly,
        "UPDATE orchestration.instructions SET state = 'COMPLETED' WHERE state = 'EXECUTING'",
    )
    assert (found.sqlstate, found.constraint) == (
        "23503",
        "fk_payment_outbox_pending_participant_id_instruction_id_open",
    )


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-OUT-009")
def test_a_stray_change_of_a_pending_row_s_identity_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"), "UPDATE orchestration.payment_outbox_pending SET rail_type = 'other'"
    )
    assert_invariant(found, "INV-OUT-009", "P7006", "payment_outbox_pending")


@pytest.mark.usefixtures("filled")
@pytest.mark.invariant("INV-OUT-005")
def test_a_stray_attempt_is_rejected_by_the_guard(login: Login) -> None:
    found = refusal(
        login("readonly"),
        "INSERT INTO orchestration.payment_outbox_attempts"
        " (outbox_id, attempt_no, phase, state, lease_token, worker_id, claimed_at)"
        " SELECT outbox_id, attempt_count + 1, 'OPEN', 'DISPATCHING', gen_random_uuid(), 'forger',"
        " clock_timestamp() FROM orchestration.payment_outbox_pending",
    )
    assert_invariant(found, "INV-OUT-005", "P7005", "payment_outbox_attempts")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("column", ["db_user", "xact_id"])
def test_a_stray_insert_cannot_choose_who_it_was(
    login: Login, superuser: Connect, column: str
) -> None:
    ingest = login("ingest")
    forged = {"db_user": "'symphony_owner'", "xact_id": "3"}[column]
    ingest.execute(
        "INSERT INTO orchestration.revoked_tokens"
        f" (token_hash, reason_code, revoked_by, {column})"
        f" VALUES (repeat('e', 64), 'unspecified', 'test', {forged})"
    )
    row = superuser.execute(
        "SELECT db_user, xact_id FROM orchestration.revoked_tokens WHERE token_hash = %s",
        ("e" * 64,),
    ).fetchone()
    assert row is not None
    assert row[0] == ingest.info.user
    assert row[1] > 3
