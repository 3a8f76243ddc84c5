"""Evidence at any revision: what the SQL functions that exist there write."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tests.support import Connect, activate_policy, digest, scalar

WRITERS: Final[Mapping[str, tuple[str, ...]]] = {
    "audit_log": ("control",),
    "kill_switches": ("control",),
    "policy_versions": ("control",),
    "revoked_client_certs": ("control",),
    "revoked_tokens": ("control",),
    "ingress_attestations": ("ingest",),
    "ingress_attestation_events": ("executor",),
    "instructions": ("ingest",),
    "status_history": ("ingest", "executor"),
    "execution_attempts": ("executor",),
    "transaction_attempts": ("executor",),
    "payment_outbox_items": ("executor",),
    "payment_outbox_attempts": ("executor", "control"),
    "payment_outbox_late_results": ("control",),
    "payment_outbox_interventions": ("control",),
}
"""Which roles' functions write each table of evidence here."""


@dataclass(frozen=True)
class Writers:
    """The connections that call the functions, by role."""

    control: Connect
    ingest: Connect
    executor: Connect


def record_by_hand(by: Writers) -> None:
    """An act of which only the log tells; without a right to the table, others tell of theirs."""
    may = scalar(
        by.control,
        "SELECT pg_catalog.has_table_privilege('orchestration.audit_log', 'INSERT')",
    )
    if may:
        by.control.execute(
            "INSERT INTO orchestration.audit_log (action, table_name, after)"
            " VALUES ('REVOKE', 'revoked_tokens', '{}')"
        )


def engage_and_release(by: Writers) -> None:
    for act in ("engage", "release"):
        by.control.execute(
            f"SELECT FROM orchestration.{act}_kill_switch("
            "p_scope => 'RAIL', p_target => 'a rail of no one', p_reason => 'test')"
        )


def enter_policies(by: Writers) -> None:
    activate_policy(by.control, "v1")
    activate_policy(by.control, "v2")


def revoke_credentials(by: Writers) -> None:
    for function in ("revoke_client_cert", "revoke_token"):
        by.control.execute(
            f"SELECT FROM orchestration.{function}(%s, p_reason_code => 'keyCompromise')",
            (digest(function),),
        )


def attest_and_execute(by: Writers) -> None:
    attested = by.ingest.execute(
        "SELECT id FROM orchestration.append_attestations(%s::jsonb)",
        (
            json.dumps(
                [
                    {
                        "caller_identity": "caller",
                        "idempotency_key": key,
                        "payload_hash": digest(key),
                        "policy_version_id": "v2",
                    }
                    for key in ("first", "second")
                ]
            ),
        ),
    ).fetchall()
    for event, terminal_status in (("EXECUTION_STARTED", None), ("EXECUTION_COMPLETED", "SUCCESS")):
        by.executor.execute(
            "SELECT FROM orchestration.record_attestation_event(%s, %s, %s)",
            (attested[0][0], event, terminal_status),
        )


def receive_and_authorize(by: Writers) -> None:
    """Of two instructions one is authorized."""
    (attestation_id,) = by.ingest.execute(
        "SELECT attestation_id FROM orchestration.ingress_attestation_status"
        " WHERE idempotency_key OPERATOR(pg_catalog.=) 'first'"
    ).fetchone() or (None,)
    instructions = [
        {
            "participant_id": "participant",
            "idempotency_key": key,
            "instruction_type": "pain.001",
            "end_to_end_id": key,
            "amount_minor": 100,
            "currency": "EUR",
            "debtor_account": "debtor",
            "creditor_account": "creditor",
            "payload": {"key": key},
            "attestation_id": str(attestation_id),
            "policy_version_id": "v2",
        }
        for key in ("authorized", "received")
    ]
    (id, version), _ = by.ingest.execute(
        "SELECT id, version FROM orchestration.receive_instruction(%s::jsonb)",
        (json.dumps(instructions),),
    ).fetchall()
    if by.executor.info.user == by.ingest.info.user:
        # The functions keep the two duties apart; whoever owns the table may not need them.
        by.executor.execute(
            "UPDATE orchestration.instructions SET state = 'AUTHORIZED' WHERE id = %s", (id,)
        )
    else:
        by.executor.execute(
            "SELECT FROM orchestration.authorize_instruction(%s, %s)", (id, version)
        )


def attempt_and_close(by: Writers) -> None:
    """In both logs an attempt that failed, and one that is open."""
    (instruction_id,) = by.executor.execute(
        "SELECT id FROM orchestration.instruction_status"
        " WHERE idempotency_key OPERATOR(pg_catalog.=) 'authorized'"
    ).fetchone() or (None,)
    for log, rail in (("execution", ""), ("transaction", ", p_rail_type => 'rail'")):
        opening = f"SELECT FROM orchestration.open_{log}_attempt(%s, 'worker'{rail})"
        by.executor.execute(opening, (instruction_id,))
        by.executor.execute(
            f"SELECT FROM orchestration.close_{log}_attempt(%s, 1, 'FAILED', 'E1', 'test')",
            (instruction_id,),
        )
        by.executor.execute(opening, (instruction_id,))


def enqueue_and_dispatch(by: Writers) -> None:
    """Of three items one ends, one stays claimed and one waits."""
    (instruction_id,) = by.ingest.execute(
        "SELECT id FROM orchestration.instruction_status"
        " WHERE idempotency_key OPERATOR(pg_catalog.=) 'authorized'"
    ).fetchone() or (None,)
    items = [
        {
            "instruction_id": str(instruction_id),
            "participant_id": "participant",
            "idempotency_key": key,
            "rail_type": "rail",
            "payload": {"key": key},
        }
        for key in ("ends", "claimed", "waits")
    ]
    by.executor.execute(
        "SELECT FROM orchestration.enqueue_payment_outbox(%s::jsonb)", (json.dumps(items),)
    )
    (outbox_id, lease_token), _ = by.executor.execute(
        "SELECT outbox_id, lease_token FROM orchestration.claim_outbox_batch('worker', 2, '1 hour')"
    ).fetchall()
    completion = {
        "outbox_id": str(outbox_id),
        "lease_token": str(lease_token),
        "worker_id": "worker",
        "state": "DISPATCHED",
    }
    by.executor.execute(
        "SELECT FROM orchestration.complete_outbox_attempt(%s::jsonb)", (json.dumps([completion]),)
    )


def resolve_and_cancel(by: Writers) -> None:
    """What was learnt of the item that ended, and the end of the one that waits."""
    ended, waits = (
        scalar(
            by.executor,
            "SELECT outbox_id FROM orchestration.payment_outbox_status"
            " WHERE idempotency_key OPERATOR(pg_catalog.=) %s",
            (key,),
        )
        for key in ("ends", "waits")
    )
    by.control.execute(
        "SELECT FROM orchestration.resolve_outbox_item(%s, 'SENT', 'the statement')", (ended,)
    )
    by.control.execute("SELECT FROM orchestration.cancel_outbox_item(%s, 'test')", (waits,))


WRITTEN_BY: Final[Mapping[str, Callable[[Writers], None]]] = {
    "0002": record_by_hand,
    "0003": engage_and_release,
    "0004": enter_policies,
    "0005": revoke_credentials,
    "0006": attest_and_execute,
    "0007": receive_and_authorize,
    "0008": attempt_and_close,
    "0009": enqueue_and_dispatch,
    "0010": resolve_and_cancel,
}
"""By the revision whose functions write it."""


def fill(anyone: Connect, revision: str, **by_role: Connect) -> None:
    """Write evidence into every table of evidence that exists at `revision`: as `anyone` who may
    do everything, or as the connections given by role."""
    everywhere = {"control": anyone, "ingest": anyone, "executor": anyone}
    writers = Writers(**(everywhere | by_role))
    for made_by, write in WRITTEN_BY.items():
        if made_by <= revision:
            write(writers)
