"""The chapters of the demo, told on a migrated database by its four logins."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from examples.credentials import Authority, Caller, NotAuthentic
from examples.crew import Crew, Event, WorkerFailed, crew
from examples.ingress import Accepted, accept
from examples.pain001 import CreditTransfer, as_payload
from orchestration import errors
from orchestration.database import create_engine
from orchestration.records import ClaimedItem, Completion, NewPolicyVersion
from orchestration.repo import (
    AttestationRepository,
    OutboxRepository,
    PolicyVersionRepository,
    RevocationRepository,
)
from orchestration.transactions import run_in_transaction
from orchestration.vocabulary import CRLReason
from tools import scratch

ROLES = ("ingest", "executor", "control", "auditor")
SHORT_LEASE_SECONDS = 1
HANG_AFTER = 6
POLICY: dict[str, Any] = {
    "algorithms": ["ES256"],
    "token_lifetime_seconds": 300,
    "rails": ["CHAPS", "FPS", "SCT", "SCT_INST", "SWIFT"],
}

COUNTS = text(
    """
    SELECT (SELECT count(*) FROM public.payments) AS payments,
           (SELECT count(*) FROM orchestration.ingress_attestation_status) AS attestations,
           (SELECT count(*) FROM orchestration.payment_outbox_status) AS items
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
ZOMBIES = text(
    """
    SELECT outbox_id
    FROM orchestration.payment_outbox_attempts
    WHERE state = 'ZOMBIE_REQUEUE'
    ORDER BY outbox_id
    """
)
VERIFY_OUTBOX = text("SELECT * FROM orchestration.verify_outbox()")
UNFAITHFUL_UPDATE = text("UPDATE orchestration.ingress_attestations SET payload_hash = token_hash")

T = TypeVar("T")


class StoryFailed(RuntimeError):
    """The database allowed, or did, what it must not."""


@dataclass(frozen=True)
class Refusal:
    tried: str
    error: errors.OrchestrationError


@dataclass
class Stage:
    """Who plays, and what has been refused so far."""

    console: Console
    transfers: Sequence[CreditTransfer]
    engines: Mapping[str, Engine]
    authority: Authority = field(default_factory=lambda: Authority("Lanternwick Client CA"))
    callers: dict[str, Caller] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def run(self, role: str, work: Callable[[Session], T]) -> T:
        """One transaction as this login."""
        return run_in_transaction(sessionmaker(self.engines[role]), work)

    def refused(
        self,
        tried: str,
        wanted: type[errors.OrchestrationError],
        role: str,
        work: Callable[[Session], object],
    ) -> None:
        """Really try it; the database must refuse, with this exception."""
        try:
            self.run(role, work)
        except wanted as error:
            self.refusals.append(Refusal(tried, error))
            self.say(f"[red]refused[/] {tried}: {error.sqlstate} {type(error).__name__}")
        else:
            raise StoryFailed(f"not refused: {tried}")

    def submit(
        self,
        transfer: CreditTransfer,
        *,
        policy: str = "v1",
        request: int = 1,
    ) -> Callable[[Session], Accepted]:
        """The debtor signs, the ingress verifies; what is left is the transaction itself."""
        signed = self.callers[transfer.debtor_name].sign(
            as_payload(transfer),
            request_id=f"{transfer.end_to_end_id}/{request}",
            policy=policy,
        )
        verified = self.authority.verify(signed)
        return lambda session: accept(session, verified)

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}[/]", align="left")

    def say(self, line: str) -> None:
        self.console.print(f"  {line}")


@contextmanager
def stage(
    console: Console, database: scratch.Database, transfers: Sequence[CreditTransfer]
) -> Iterator[Stage]:
    """The four logins at this database; their connections are closed afterwards."""
    engines = {role: create_engine(database.as_role(role)) for role in ROLES}
    try:
        yield Stage(console, transfers, engines)
    finally:
        for engine in engines.values():
            engine.dispose()


def table(*headings: str, right: Sequence[str] = ()) -> Table:
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left")
    return made


def logins(on: Stage) -> None:
    shown = table("login", "member of", "superuser")
    for role in ROLES:
        name, superuser = on.run(role, lambda session: session.execute(LOGIN).one())
        groups = on.run(role, lambda session: session.scalars(MEMBERSHIPS).all())
        if superuser:
            raise StoryFailed(f"{name} is a superuser")
        shown.add_row(name, ", ".join(groups), "no")
    on.console.print(shown)


def policy(on: Stage, version: str) -> NewPolicyVersion:
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
        lambda session: PolicyVersionRepository(session).rotate(
            policy(on, "v1"), grace=timedelta(0)
        ),
    )
    on.say(
        f"{active.id} is [green]{active.status}[/]; its document's SHA-256 is"
        f" {active.checksum[:16]}..."
    )
    on.refused(
        "control retires the only active policy",
        errors.LastActivePolicy,
        "control",
        lambda session: PolicyVersionRepository(session).retire("v1"),
    )


def submissions(on: Stage) -> None:
    on.chapter("3  Callers attest, and every payment is enqueued in the caller's own transaction")
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
    on.console.print(shown)
    first, other = on.transfers[0], on.transfers[1]
    forged = replace(on.callers[first.debtor_name], key=on.authority.issue("nobody").key)
    try:
        on.authority.verify(forged.sign(as_payload(first), request_id="forged", policy="v1"))
    except NotAuthentic as error:
        on.say(f"A token signed by another key never reaches the database: {error}.")
    else:
        raise StoryFailed("a forged token was believed")
    counted = counts(on)
    again = on.run("ingest", on.submit(first))
    if again != accepted[first.end_to_end_id]:
        raise StoryFailed("a replay was not answered with the first records")
    on.say(f"{first.end_to_end_id} is sent again: the first records come back, nothing is added.")
    dearer = replace(other, amount_minor=other.amount_minor * 10)
    on.refused(
        "a request is sent again with another amount",
        errors.IdempotencyConflict,
        "ingest",
        on.submit(dearer),
    )
    on.refused(
        "a new request reuses a payment's key with another amount",
        errors.IdempotencyConflict,
        "ingest",
        on.submit(dearer, request=2),
    )
    if counts(on) != counted or set(counted) != {len(on.transfers)}:
        raise StoryFailed(f"business rows, attestations and items do not agree: {counted}")
    on.say(
        "{} business rows, {} attestations, {} items, before and after: all commit together,"
        " or none.".format(*counted)
    )


def counts(on: Stage) -> tuple[int, int, int]:
    payments, attestations, items = on.run("ingest", lambda session: session.execute(COUNTS).one())
    return payments, attestations, items


def workers(on: Stage) -> None:
    on.chapter("4  Two worker processes, and one of them is killed")
    with crew(on.engines["executor"].url) as workers:
        tally: dict[str, Counter[str]] = defaultdict(Counter)
        held, answer = _work(on, workers, tally)
    shown = table("worker", "DISPATCHED", "RETRYABLE", "FAILED", "end")
    for worker, end in (("worker-a", "killed"), ("worker-b", "exit 0, nothing pending")):
        states = (str(tally[worker][state]) for state in ("DISPATCHED", "RETRYABLE", "FAILED"))
        shown.add_row(worker, *states, end)
    on.console.print(shown)
    zombies = set(on.run("auditor", lambda session: session.scalars(ZOMBIES).all()))
    if not held or not {item.outbox_id for item in held} <= zombies:
        raise StoryFailed("the killed worker's items did not come back as ZOMBIE_REQUEUE")
    on.refused(
        "the killed worker's answer arrives after its lease",
        errors.LeaseLost,
        "executor",
        lambda session: OutboxRepository(session).complete(held[0], answer),
    )


def _work(
    on: Stage, workers: Crew, tally: dict[str, Counter[str]]
) -> tuple[list[ClaimedItem], Completion]:
    """Runs both to their end: what the killed one held, and what the rail had told it."""
    workers.start(
        *("worker-a", "--batch", "12", "--lease", str(SHORT_LEASE_SECONDS)),
        *("--hang-after", str(HANG_AFTER)),
    )
    workers.start("worker-b", "--batch", "8", "--lease", "30")
    ready: set[str] = set()
    held: list[ClaimedItem] = []
    answer: Completion | None = None
    for event in workers.listen():
        match event.name:
            case "ready":
                ready.add(event.worker)
                if len(ready) == 2:
                    workers.begin("worker-a")
            case "claimed":
                _tell_claim(on, event, {item.outbox_id for item in held})
                if event.worker == "worker-a" and "worker-b" in ready:
                    # Not before: otherwise the one to be killed might find nothing to hold.
                    ready.remove("worker-b")
                    workers.begin("worker-b")
            case "recorded":
                tally[event.worker][event.facts["state"]] += 1
            case "hanging":
                held = [ClaimedItem.model_validate(item) for item in event.facts["held"]]
                answer = Completion.model_validate(event.facts["answer"])
                workers.kill(event.worker)
                _tell(
                    on,
                    event,
                    f"[bold red]killed (SIGKILL)[/] holding {len(held)}; the rail had just"
                    f" accepted {held[0].idempotency_key}",
                )
            case "ended" if event.worker == "worker-b":
                if event.facts["exit_code"] != 0:
                    raise WorkerFailed(f"worker-b failed with {event.facts['exit_code']}")
                if answer is None:
                    raise StoryFailed("worker-a was not killed in the middle of its batch")
                return held, answer
            case "ended" if answer is None:
                raise WorkerFailed(f"{event.worker} failed with {event.facts['exit_code']}")
            case _:
                pass
    raise AssertionError("a crew is heard until it has ended")


def _tell_claim(on: Stage, event: Event, of_the_dead: set[UUID]) -> None:
    items = event.facts["items"]
    known = sum(1 for item in items if UUID(item["outbox_id"]) in of_the_dead)
    again = sum(1 for item in items if item["attempt_no"] > 1) - known
    kinds = [f"{again} to retry"] if again else []
    if known:
        kinds.append(f"[yellow]{known} from the dead, as ZOMBIE_REQUEUE[/]")
    _tell(on, event, f"claims {len(items)}" + (f": {', '.join(kinds)}" if kinds else ""))


def _tell(on: Stage, event: Event, what: str) -> None:
    on.say(f"[dim]{event.seconds:5.2f} s[/]  {event.worker}  {what}")


def rotation(on: Stage) -> None:
    on.chapter("5  The policy rotates, a certificate is revoked")

    def rotate(session: Session) -> Sequence[str]:
        policies = PolicyVersionRepository(session)
        policies.rotate(policy(on, "v2"), grace=timedelta(0), expected_active="v1")
        policies.retire("v1")
        return [f"{one.id} {one.status}" for one in policies.accepted()]

    accepted = on.run("control", rotate)
    on.say(f"v2 replaces v1 without grace, v1 is RETIRED; accepted now: {', '.join(accepted)}.")
    transfer = on.transfers[0]
    on.refused(
        "a token signed under the retired policy v1",
        errors.PolicyNotAccepted,
        "ingest",
        on.submit(transfer, policy="v1", request=3),
    )
    on.run("ingest", on.submit(transfer))
    on.say("The request attested under v1 is replayed: still answered, acceptance is judged once.")
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
        "an attestation with the revoked certificate",
        errors.CredentialRevoked,
        "ingest",
        on.submit(transfer, policy="v2", request=4),
    )
    on.refused(
        "ingest updates an attestation",
        errors.InsufficientPrivilege,
        "ingest",
        lambda session: session.execute(UNFAITHFUL_UPDATE),
    )


def audit(on: Stage) -> None:
    on.chapter("6  The auditor reads")
    shown = table("chain of", "records", "every hash recomputed", right=["records"])
    for name in on.callers:
        report = on.run(
            "auditor", lambda session, name=name: AttestationRepository(session).verify_chain(name)
        )
        if not report.ok:
            raise StoryFailed(f"the chain of {name} breaks: {report.break_reason}")
        shown.add_row(name, str(report.records), "[green]holds[/]")
    on.console.print(shown)
    findings = on.run("auditor", lambda session: session.execute(VERIFY_OUTBOX).all())
    if findings:
        raise StoryFailed(f"verify_outbox found {len(findings)}: {findings[0]}")
    on.say("verify_outbox: [green]no finding[/], every item is pending or ended, never both.")
    zombie = on.run("auditor", lambda session: session.scalars(ZOMBIES).first())
    assert zombie is not None
    attempts = on.run("auditor", lambda session: OutboxRepository(session).attempts(zombie))
    item = on.run("auditor", lambda session: OutboxRepository(session).get(zombie))
    assert item is not None
    on.say(f"What became of {item.idempotency_key}, which the killed worker held:")
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
    on.console.print(shown)


def refusals(on: Stage) -> None:
    on.chapter("7  Everything that was refused")
    shown = table("what was tried", "SQLSTATE", "invariant", "exception", "retry")
    for one in on.refusals:
        shown.add_row(
            one.tried,
            one.error.sqlstate,
            one.error.invariant or "role boundary",
            type(one.error).__name__,
            one.error.retry,
        )
    on.console.print(shown)
