"""The transactional outbox: enqueue with the business write, claim, complete (INV-OUT)."""

from collections.abc import Iterable, Mapping
from datetime import UTC, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select, text

from orchestration.errors import LeaseLost
from orchestration.models import PaymentOutboxAttempt
from orchestration.records import (
    AttemptRecord,
    ClaimedItem,
    Completion,
    CompletionResult,
    NewOutboxItem,
    OutboxDepth,
    OutboxItemRecord,
    OutboxStatus,
    RepairedAttempt,
)
from orchestration.repo.arguments import (
    COUNT,
    DURATION,
    ID,
    TEXT,
    argument,
    dump_inputs,
    dump_json,
    instance,
    instances,
    microseconds,
)
from orchestration.repo.base import Repository, one
from orchestration.vocabulary import AttemptState

ENQUEUE: Final = text(
    "SELECT * FROM orchestration.enqueue_payment_outbox(p_items => CAST(:items AS jsonb))"
)
CLAIM: Final = text(
    """
    SELECT *
    FROM orchestration.claim_outbox_batch(
      p_worker_id => :worker_id,
      p_batch_size => :batch_size,
      p_lease => CAST(:lease AS interval)
    )
    """
)
RENEW: Final = text(
    """
    SELECT orchestration.renew_outbox_lease(
      p_outbox_id => :outbox_id,
      p_lease_token => :lease_token,
      p_worker_id => :worker_id,
      p_lease => CAST(:lease AS interval)
    ) AS lease_expires_at
    """
)
COMPLETE: Final = text(
    """
    SELECT *
    FROM orchestration.complete_outbox_attempt(
      p_completions => CAST(:completions AS jsonb),
      p_partial => :partial
    )
    """
)
REPAIR: Final = text("SELECT * FROM orchestration.repair_expired_leases(p_limit => :limit)")
REDRIVE: Final = text("SELECT * FROM orchestration.redrive_outbox_item(p_outbox_id => :outbox_id)")
STATUS: Final = text(
    "SELECT * FROM orchestration.payment_outbox_status WHERE outbox_id = :outbox_id"
)
DEPTH: Final = text("SELECT * FROM orchestration.payment_outbox_depth ORDER BY rail_type")

ATTEMPTS: Final = PaymentOutboxAttempt.__table__


class OutboxRepository(Repository):
    """The outbox on the caller's Session: the enqueue commits with the caller's own write.

    Enqueuing needs `symphony_ingest` or `symphony_executor`, working `symphony_executor`, redriving
    `symphony_control`. Claim, complete and repair are meant for READ COMMITTED; above it they are
    right too, with SerializationFailure (40001) under contention.
    """

    def enqueue(self, new: NewOutboxItem) -> OutboxItemRecord:
        """Enqueue one item; as `enqueue_many` of one."""
        return self.enqueue_many([instance("new", NewOutboxItem, new)])[0]

    def enqueue_many(self, news: Iterable[NewOutboxItem]) -> list[OutboxItemRecord]:
        """Enqueue up to 10,000 items, all or none, in one round trip; records in input order.

        A key (`instruction_id`, `idempotency_key`) that was enqueued before with the same
        participant, rail and payload gives its newest item back, live or finished.

        Raises IdempotencyConflict (P7004, INV-OUT-004), KillSwitchEngaged (P7501, INV-KIL-001),
        InstructionStateForbids (P7404, INV-INS-006) unless the instruction is AUTHORIZED or
        EXECUTING, ForeignKeyViolation (23503, INV-INS-005) where the participant has no such
        instruction, InvalidParameterValue (22023, INV-API-001) for more than 10,000,
        SerializationFailure (40001) in a snapshot too old to see the key.
        """
        items = dump_inputs("news", instances("news", NewOutboxItem, news), _item)
        rows = self._rows(ENQUEUE, {"items": items})
        return [OutboxItemRecord.from_row(row) for row in rows]

    def claim(self, worker_id: str, *, batch_size: int, lease: timedelta) -> list[ClaimedItem]:
        """Lease up to `batch_size` due items (1 to 10,000) for `lease` (1 s to 1 day).

        Commit before calling a rail: the openings must be there when the side effect is. An item
        whose lease has expired is closed as ZOMBIE_REQUEUE first and handed out anew. Items of a
        stopped participant or rail are left out.

        Raises KillSwitchEngaged (P7501, INV-KIL-001) under GLOBAL or DISPATCH,
        InvalidParameterValue (22023, INV-API-001).
        """
        rows = self._rows(
            CLAIM,
            {
                "worker_id": argument("worker_id", TEXT, worker_id),
                "batch_size": argument("batch_size", COUNT, batch_size),
                "lease": microseconds(argument("lease", DURATION, lease)),
            },
        )
        return [ClaimedItem.from_row(row) for row in rows]

    def renew(self, item: ClaimedItem, *, lease: timedelta) -> ClaimedItem:
        """Extend the lease to `lease` (1 s to 1 day) from now, by the database's clock.

        Raises LeaseLost (P7002, INV-OUT-002), InvalidParameterValue (22023, INV-API-001).
        """
        instance("item", ClaimedItem, item)
        row = self._row(
            RENEW,
            {
                "outbox_id": item.outbox_id,
                "lease_token": item.lease_token,
                "worker_id": item.worker_id,
                "lease": microseconds(argument("lease", DURATION, lease)),
            },
        )
        return item.model_copy(update={"lease_expires_at": one(row)["lease_expires_at"]})

    def complete(self, item: ClaimedItem, completion: Completion) -> CompletionResult:
        """Record how the attempt ended; the same completion again gives what was recorded.

        A RETRYABLE at the item's last attempt is recorded as FAILED, RETRY_CEILING_EXCEEDED.

        Raises LeaseLost (P7002, INV-OUT-002): what the rail answered is then not recorded.
        """
        instance("item", ClaimedItem, item)
        instance("completion", Completion, completion)
        return self._complete([(item, completion)], partial=False)[0]

    def complete_many(
        self, pairs: Iterable[tuple[ClaimedItem, Completion]]
    ) -> list[CompletionResult]:
        """Record up to 10,000 attempts in one round trip: what can be is, results in input order.

        A lost lease is told in its own result and undoes nothing; any other refusal raises and
        undoes the call: NotFound (P0002, INV-API-002) for an unknown item, InvalidParameterValue
        (22023, INV-API-001) for more than 10,000.
        """
        return self._complete(pairs, partial=True)

    def repair_expired(self, *, limit: int) -> list[RepairedAttempt]:
        """Close up to `limit` (0 to 10,000) attempts whose lease has expired, as a claim would.

        Raises InvalidParameterValue (22023, INV-API-001).
        """
        rows = self._rows(REPAIR, {"limit": argument("limit", COUNT, limit)})
        return [RepairedAttempt.from_row(row) for row in rows]

    def redrive(self, outbox_id: UUID) -> OutboxItemRecord:
        """A new item after one that FAILED as REJECTED or NOT_SENT; again, the live successor.

        Raises NotFound (P0002, INV-API-002), InvalidAttemptTransition (P7005, INV-OUT-006).
        """
        row = self._row(REDRIVE, {"outbox_id": argument("outbox_id", ID, outbox_id)})
        return OutboxItemRecord.from_row(one(row))

    def get(self, outbox_id: UUID) -> OutboxStatus | None:
        """Where the item stands, or None."""
        row = self._row(STATUS, {"outbox_id": argument("outbox_id", ID, outbox_id)})
        return OutboxStatus.from_row(row) if row else None

    def attempts(self, outbox_id: UUID) -> list[AttemptRecord]:
        """Every opening and closing of the item, in order."""
        rows = self._rows(
            select(ATTEMPTS)
            .where(ATTEMPTS.c.outbox_id == argument("outbox_id", ID, outbox_id))
            .order_by(ATTEMPTS.c.attempt_no, ATTEMPTS.c.phase.desc())
        )
        return [AttemptRecord.from_row(row) for row in rows]

    def depth(self) -> list[OutboxDepth]:
        """What is pending, a rail each."""
        return [OutboxDepth.from_row(row) for row in self._rows(DEPTH)]

    def _complete(
        self, pairs: Iterable[tuple[ClaimedItem, Completion]], *, partial: bool
    ) -> list[CompletionResult]:
        completions = dump_json([_completion(*pair) for pair in _pairs(pairs)])
        rows = self._rows(COMPLETE, {"completions": completions, "partial": partial})
        return [_result(row) for row in rows]


def _pairs(pairs: object) -> list[tuple[ClaimedItem, Completion]]:
    found: list[tuple[ClaimedItem, Completion]] = instances("pairs", tuple, pairs)
    instances("pairs", ClaimedItem, [pair[0] if len(pair) == 2 else None for pair in found])
    instances("pairs", Completion, [pair[1] for pair in found])
    return found


def _item(new: NewOutboxItem) -> dict[str, Any]:
    return {
        "instruction_id": str(new.instruction_id),
        "participant_id": new.participant_id,
        "idempotency_key": new.idempotency_key,
        "rail_type": new.rail_type,
        "payload": new.payload,
        "due_at": None if new.due_at is None else new.due_at.astimezone(UTC).isoformat(),
        "max_attempts": new.max_attempts,
    }


def _completion(item: ClaimedItem, completion: Completion) -> dict[str, Any]:
    return {
        "outbox_id": str(item.outbox_id),
        "lease_token": str(item.lease_token),
        "worker_id": item.worker_id,
        "state": completion.state,
        "outcome": completion.outcome,
        "rail_reference": completion.rail_reference,
        "rail_code": completion.rail_code,
        "error_code": completion.error_code,
        "error_message": completion.error_message,
        "retry_in": None if completion.retry_in is None else microseconds(completion.retry_in),
        "latency_ms": completion.latency_ms,
    }


def _result(row: Mapping[str, Any]) -> CompletionResult:
    error = None
    if row["error_sqlstate"] is not None:
        error = LeaseLost(
            row["error_message"],
            sqlstate=row["error_sqlstate"],
            invariant="INV-OUT-002",
            schema="orchestration",
            table="payment_outbox_pending",
            column="lease_token",
            constraint="INV-OUT-002",
            detail=row["error_detail"],
            hint=row["error_hint"],
        )
    state = row["state"]
    return CompletionResult(
        outbox_id=row["outbox_id"],
        state=AttemptState(state) if state is not None else None,
        error=error,
        replayed=row["replayed"],
    )
