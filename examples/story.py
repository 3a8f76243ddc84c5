"""The chapters of the demo, which run on a migrated database as four logins."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from examples.credentials import NotAuthentic
from examples.desk import enqueue, order
from examples.ingress import Accepted
from examples.pain001 import CreditTransfer, as_payload
from examples.shift import ZOMBIES
from examples.stage import ROLES, Stage, StoryFailed, table
from sqlalchemy import text
from sqlalchemy.orm import Session

from orchestration import errors
from orchestration.records import ChainReport, NewPolicyVersion, OutboxItemRecord
from orchestration.repo import (
    AttestationRepository,
    AuditLogRepository,
    InstructionRepository,
    KillSwitchRepository,
    OutboxRepository,
    PolicyVersionRepository,
    RevocationRepository,
)
from orchestration.vocabulary import AuditAction, CRLReason, KillSwitchScope

POLICY: dict[str, Any] = {
    "algorithms": ["ES256"],
    "token_lifetime_seconds": 300,
    "rails": ["CHAPS", "FPS", "SCT", "SCT_INST", "SWIFT"],
}

COUNTS = text(
    """
    SELECT (SELECT count(*) FROM public.payments) AS payments,
           (SELECT count(*) FROM orchestration.ingress_attestation_status) AS attestations,
           (SELECT count(*) FROM orchestration.instruction_status) AS instructions
    """
)
LOGIN = text("SELECT rolname, rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user")
MEMBERSHIPS = text(
    """
    SELECT g.rolname
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles g ON g.oid = m.roleid
    JOIN pg_catalog.pg_roles l ON l.oid = m.member
    WHERE l.rolname = session_user
    """
)
FINDINGS = text(
    """
    SELECT finding FROM orchestration.verify_outbox()
    UNION ALL
    SELECT finding FROM orchestration.verify_instructions()
    UNION ALL
    SELECT finding FROM orchestration.verify_attempt_logs()
    """
)
REWRITE = text("UPDATE orchestration.ingress_attestations SET payload_hash = token_hash")


def logins(on: Stage) -> None:
    shown = table("login", "member of", "superuser")
    for role in ROLES:
        name, superuser = on.run(role, lambda session: session.execute(LOGIN).one())
        groups = on.run(role, lambda session: session.scalars(MEMBERSHIPS).all())
        if superuser:
            raise StoryFailed(f"{name} is a superuser")
        shown.add_row(name, ", ".join(groups), "no")
    on.show(shown)


def policy(version: str) -> NewPolicyVersion:
    document = json.dumps({"version": version, **POLICY}, sort_keys=True)
    return NewPolicyVersion(
        id=version,
        description=f"Who may submit what, {version}",
        checksum=hashlib.sha256(document.encode()).hexdigest(),
        created_by="the compliance officer",
    )


def activate_policy(on: Stage) -> None:
    on.chapter("2  A policy becomes active")
    active = on.run(
        "control",
        lambda session: PolicyVersionRepository(session).rotate(policy("v1"), grace=timedelta(0)),
    )
    on.say(
        f"{active.id} is [green]{active.status}[/]. The SHA-256 of its document is"
        f" {active.checksum[:16]}..."
    )
    on.refused(
        "retiring the only active policy",
        errors.LastActivePolicy,
        "control",
        lambda session: PolicyVersionRepository(session).retire("v1"),
    )


def submissions(on: Stage) -> dict[str, Accepted]:
    on.chapter("3  Requests are attested and instructions received, in the caller's transaction")
    by_debtor: dict[str, list[CreditTransfer]] = defaultdict(list)
    for transfer in on.transfers:
        by_debtor[transfer.debtor_name].append(transfer)
    on.callers.update({name: on.authority.issue(name) for name in by_debtor})
    accepted = {
        transfer.end_to_end_id: on.run("ingest", on.submit(transfer)) for transfer in on.transfers
    }
    shown = table("caller", "payments", "rails", "chain", "client certificate", right=["payments"])
    for name, theirs in by_debtor.items():
        last = max(accepted[one.end_to_end_id].attestation.chain_seq for one in theirs)
        shown.add_row(
            name,
            str(len(theirs)),
            ", ".join(sorted({one.rail for one in theirs})),
            f"1..{last}",
            f"{on.callers[name].fingerprint[:16]}...",
        )
    on.show(shown)
    on.gap()
    first, other = on.transfers[0], on.transfers[1]
    forged = replace(on.callers[first.debtor_name], key=on.authority.issue("nobody").key)
    try:
        on.authority.verify(forged.sign(as_payload(first), request_id="forged", policy="v1"))
    except NotAuthentic as error:
        on.say(f"A token signed by another key never reaches the database: {error}.")
    else:
        raise StoryFailed("a forged token was accepted")
    counted = counts(on)
    again = on.run("ingest", on.submit(first))
    recorded = accepted[first.end_to_end_id]
    if not (again.attestation.replayed and again.instruction.replayed) or (
        (again.attestation.record_hash, again.instruction.id)
        != (recorded.attestation.record_hash, recorded.instruction.id)
    ):
        raise StoryFailed("a replay did not return the first records")
    on.say(f"{first.end_to_end_id} is sent again: it gets the first records, nothing is added.")
    dearer = replace(other, amount_minor=other.amount_minor * 10)
    on.refused(
        "a request resent, another amount",
        errors.IdempotencyConflict,
        "ingest",
        on.submit(dearer),
    )
    on.refused(
        "a key reused for another amount",
        errors.IdempotencyConflict,
        "ingest",
        on.submit(dearer, request=2),
    )
    if counts(on) != counted or set(counted) != {len(on.transfers)}:
        raise StoryFailed(f"business rows, attestations and instructions differ: {counted}")
    on.say(
        "Before and after there are {} business rows, {} attestations and {} instructions: they"
        " commit together.".format(*counted)
    )
    on.refused(
        "enqueuing before it is authorized",
        errors.InstructionStateForbids,
        "executor",
        lambda session: enqueue(
            session, accepted[first.end_to_end_id].instruction, as_payload(first)
        ),
    )
    return accepted


def ordering(
    transfer: CreditTransfer, accepted: Mapping[str, Accepted]
) -> Callable[[Session], OutboxItemRecord]:
    instruction = accepted[transfer.end_to_end_id].instruction
    return partial(order, instruction=instruction, payload=as_payload(transfer))


def authorizations(on: Stage, accepted: Mapping[str, Accepted]) -> None:
    on.chapter("4  Another login authorizes the instructions and enqueues them")
    stopped = on.transfers[-1].debtor_name
    theirs = [transfer for transfer in on.transfers if transfer.debtor_name == stopped]
    switch = on.run(
        "control",
        lambda session: KillSwitchRepository(session).engage(
            scope=KillSwitchScope.PARTICIPANT,
            target=stopped,
            reason="unusual payments",
            engaged_by="the operations desk",
        ),
    )
    on.say(f"The kill switch {switch.scope} {switch.target} is engaged: {switch.reason}.")
    for transfer in on.transfers:
        if transfer not in theirs:
            on.run("executor", ordering(transfer, accepted))
    on.refused(
        "authorizing, participant stopped",
        errors.KillSwitchEngaged,
        "executor",
        ordering(theirs[0], accepted),
    )
    on.run("ingest", on.submit(theirs[0]))
    on.say(f"{theirs[0].end_to_end_id} is sent again: the switch does not block a replay.")
    on.run(
        "control",
        lambda session: KillSwitchRepository(session).release(
            scope=KillSwitchScope.PARTICIPANT,
            target=stopped,
            reason="the participant has explained the payments",
            released_by="the operations desk",
        ),
    )
    for transfer in theirs:
        on.run("executor", ordering(transfer, accepted))
    on.say(f"The switch is released, and its {len(theirs)} instructions are enqueued too.")
    received = accepted[on.transfers[0].end_to_end_id].instruction
    on.refused(
        "failing a stale version",
        errors.StaleInstruction,
        "executor",
        lambda session: InstructionRepository(session).fail(
            received.id, version=received.version, reason="decided on an old version"
        ),
    )
    executing = on.run("executor", lambda session: InstructionRepository(session).get(received.id))
    assert executing is not None
    on.refused(
        "failing it with a pending item",
        errors.InstructionStateForbids,
        "executor",
        lambda session: InstructionRepository(session).fail(
            executing.id, version=executing.version, reason="the payer changed its mind"
        ),
    )
    shown = table("version", "from", "to", "by")
    for one in on.run(
        "auditor", lambda session: InstructionRepository(session).history(received.id)
    ):
        shown.add_row(str(one.version), one.from_state or "-", one.to_state, one.db_user)
    on.say(f"The history of {received.idempotency_key}, written by the database:")
    on.show(shown)


def counts(on: Stage) -> tuple[int, int, int]:
    counted = on.run("ingest", lambda session: session.execute(COUNTS).one())
    return counted.payments, counted.attestations, counted.instructions


def rotation(on: Stage) -> None:
    on.chapter("7  The policy is rotated, and a certificate is revoked")

    def rotate(session: Session) -> Sequence[str]:
        policies = PolicyVersionRepository(session)
        policies.rotate(policy("v2"), grace=timedelta(0), expected_active="v1")
        policies.retire("v1")
        return [f"{one.id} {one.status}" for one in policies.accepted()]

    accepted = on.run("control", rotate)
    on.say(f"v2 replaces v1 without grace, and v1 is RETIRED. Accepted now: {', '.join(accepted)}.")
    transfer = on.transfers[0]
    on.refused(
        "a token under the retired policy",
        errors.PolicyNotAccepted,
        "ingest",
        on.submit(transfer, policy="v1", request=3),
    )
    on.run("ingest", on.submit(transfer))
    on.say("A replay of the request under v1 still succeeds: acceptance is checked only once.")
    caller = on.callers[transfer.debtor_name]
    revoked = on.run(
        "control",
        lambda session: RevocationRepository(session).revoke_client_cert(
            cert_fingerprint_sha256=caller.fingerprint,
            reason_code=CRLReason.KEY_COMPROMISE,
            revoked_by="the security desk",
        ),
    )
    on.say(f"The certificate of {caller.name} is revoked: {revoked.reason_code}.")
    on.refused(
        "attesting, certificate revoked",
        errors.CredentialRevoked,
        "ingest",
        on.submit(transfer, policy="v2", request=4),
    )
    on.refused(
        "ingest updating an attestation",
        errors.InsufficientPrivilege,
        "ingest",
        lambda session: session.execute(REWRITE),
    )


def audit(on: Stage) -> None:
    on.chapter("8  The auditor reads")
    shown = table("chain of", "records", "hashes recomputed", right=["records"])
    for name in on.callers:
        report = on.run("auditor", partial(verify_chain, caller=name))
        if not report.ok:
            raise StoryFailed(f"the chain of {name} is broken: {report.break_reason}")
        shown.add_row(name, str(report.records), "[green]unbroken[/]")
    on.show(shown)
    on.gap()
    findings = on.run("auditor", lambda session: session.scalars(FINDINGS).all())
    if findings:
        raise StoryFailed(f"{len(findings)} findings, the first is: {findings[0]}")
    governance(on)
    on.say("verify_instructions, verify_attempt_logs, verify_outbox: [green]no finding[/].")
    zombie = on.run("auditor", lambda session: session.scalars(ZOMBIES).first())
    assert zombie is not None
    attempts = on.run("auditor", lambda session: OutboxRepository(session).attempts(zombie))
    item = on.run("auditor", lambda session: OutboxRepository(session).get(zombie))
    assert item is not None
    on.say(f"The attempts of {item.idempotency_key}, which the killed worker held:")
    shown = table("attempt", "phase", "state", "worker", "after", "rail reference", right=["after"])
    for one in attempts:
        at = one.completed_at or one.claimed_at
        shown.add_row(
            str(one.attempt_no),
            one.phase,
            one.state,
            one.worker_id,
            f"{(at - attempts[0].claimed_at).total_seconds():.2f} s",
            one.rail_reference or "-",
        )
    on.show(shown)


def governance(on: Stage) -> None:
    """Show the audit log, without the migrations at its beginning."""
    log = on.run("auditor", lambda session: AuditLogRepository(session).entries())
    report = on.run("auditor", lambda session: AuditLogRepository(session).verify_chain())
    if not report.ok:
        raise StoryFailed(f"the audit log is broken: {report.break_reason}")
    migrations = [entry for entry in log if entry.action is AuditAction.MIGRATE]
    shown = table("entry", "act", "what changed", "by", "from", "hash", right=["entry"])
    for entry in log[len(migrations) :]:
        shown.add_row(
            str(entry.chain_seq),
            entry.action,
            ", ".join(changed(row) for row in entry.after.values()),
            entry.db_user.rpartition("_")[2],
            str(entry.client_addr or "a local socket"),
            f"{entry.record_hash[:12]}...",
        )
    on.say(f"The audit log, after the {len(migrations)} migrations that created the schema:")
    on.show(shown)
    on.gap()
    on.say(f"verify_audit_log: {report.entries} entries, [green]one chain, one entry per act[/].")


def changed(row: Mapping[str, Any]) -> str:
    """Describe a row of the log in a few words."""
    if "status" in row:
        return f"{row['id']} {row['status']}"
    if "scope" in row:
        return f"{row['scope']} {row['target']}"
    if "outbox_id" in row:
        return f"item {row['outbox_id'][-12:]}" + (
            f" {row['outcome']}" if "outcome" in row else f", redrive {row['redrive_no']}"
        )
    return str(row.get("cert_fingerprint_sha256") or row.get("token_hash"))[:12] + "..."


def verify_chain(session: Session, *, caller: str) -> ChainReport:
    return AttestationRepository(session).verify_chain(caller)


def refusals(on: Stage) -> None:
    on.chapter("9  All refusals")
    shown = table("what was tried", "SQLSTATE", "invariant", "exception", "retry")
    for one in on.refusals:
        shown.add_row(
            one.tried,
            one.error.sqlstate,
            one.error.invariant or "role boundary",
            type(one.error).__name__,
            one.error.retry,
        )
    on.show(shown)
