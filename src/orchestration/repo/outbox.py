"""The transactional outbox: enqueue with the business write, claim, complete (INV-OUT)."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import TextClause, select, text

from orchestration.errors import LeaseLost
from orchestration.models import PaymentOutboxAttempt
from orchestration.records import (
    AttemptRecord,
    AwareTime,
    ClaimedItem,
    Completion,
    CompletionResult,
    InterventionRecord,
    LateResultRecord,
    NewOutboxItem,
    OutboxContradiction,
    OutboxDepth,
    OutboxItemRecord,
    OutboxStatus,
    RepairedAttempt,
    UnresolvedItem,
    microseconds,
)
from orchestration.repo.arguments import (
    COUNT,
    DURATION,
    ID,
    KEY_OR_NONE,
    REASON,
    WORD,
    argument,
    dump_inputs,
    dump_json,
    instance,
    instances,
)
from orchestration.repo.base import Repository, one
from orchestration.vocabulary import AttemptState, LateOutcome

ENQUEUE: Final = text(
    "SELECT * FROM orchestration.enqueue_payment_outbox(p_items => CAST(:items AS jsonb))"
)
CLAIM: Final = text(
    """
    SELECT *
    FROM orchestration.claim_outbox_batch(
      p_worker_id => :worker_id,
      p_batch_size => :batch_size,
      p_lease => CAST(:lease AS interval),
      p_max_bytes => :max_bytes
    )
    """
)
# A lease lasts at most a day and never ends before next_attempt_at, so the query can skip items
# that are scheduled for later.
HELD: Final = text(
    """
    SELECT c.*
    FROM orchestration.payment_outbox_pending p
    CROSS JOIN LATERAL (
      SELECT c.*
      FROM orchestration.payment_outbox_claimed c
      WHERE c.outbox_id = p.outbox_id
      OFFSET 0
    ) c
    WHERE p.next_attempt_at <= statement_timestamp() + interval '1 day'
      AND p.claimed_by = :worker_id
      AND p.lease_expires_at > statement_timestamp()
    ORDER BY c.claimed_at, c.outbox_id
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
LATE_RESULT: Final = text(
    """
    SELECT *
    FROM orchestration.record_late_result(
      p_outbox_id => :outbox_id,
      p_attempt_no => :attempt_no,
      p_outcome => :outcome,
      p_lease_token => :lease_token,
      p_rail_reference => :rail_reference,
      p_recorded_by => :worker_id
    )
    """
)
RESOLVE: Final = text(
    """
    SELECT *
    FROM orchestration.resolve_outbox_item(
      p_outbox_id => :outbox_id,
      p_outcome => :outcome,
      p_reason => :reason,
      p_resolved_by => :by,
      p_rail_reference => :rail_reference
    )
    """
)
CANCEL: Final = text(
    """
    SELECT *
    FROM orchestration.cancel_outbox_item(
      p_outbox_id => :outbox_id,
      p_reason => :reason,
      p_cancelled_by => :by
    )
    """
)
RESCHEDULE: Final = text(
    """
    SELECT *
    FROM orchestration.reschedule_outbox_item(p_outbox_id => :outbox_id, p_due_at => :due_at)
    """
)
EXPIRE_LEASE: Final = text(
    """
    SELECT *
    FROM orchestration.expire_outbox_lease(
      p_outbox_id => :outbox_id,
      p_reason => :reason,
      p_expired_by => :by
    )
    """
)
CLOSE_CONTRADICTION: Final = text(
    """
    SELECT *
    FROM orchestration.close_contradiction(
      p_outbox_id => :outbox_id,
      p_result_no => :result_no,
      p_reason => :reason,
      p_closed_by => :by
    )
    """
)
UNRESOLVED: Final = text(
    "SELECT * FROM orchestration.payment_outbox_unresolved ORDER BY since, outbox_id"
)
CONTRADICTIONS: Final = text(
    "SELECT * FROM orchestration.payment_outbox_contradictions ORDER BY since, outbox_id, result_no"
)
STATUS: Final = text(
    "SELECT * FROM orchestration.payment_outbox_status WHERE outbox_id = :outbox_id"
)
DEPTH: Final = text("SELECT * FROM orchestration.payment_outbox_depth ORDER BY rail_type")

ATTEMPTS: Final = PaymentOutboxAttempt.__table__

NEWS: Final = TypeAdapter(list[NewOutboxItem])
LEASE: Final = {"outbox_id", "lease_token", "worker_id"}
"""The fields of a ClaimedItem that a completion names."""
LATE_OUTCOME: Final[TypeAdapter[LateOutcome]] = TypeAdapter(LateOutcome)
TIME: Final[TypeAdapter[datetime]] = TypeAdapter(AwareTime)
DEFAULT_MAX_BYTES: Final = 16 * 2**20
"""The default budget of a claim, in bytes of payload."""


class OutboxRepository(Repository):
    """The outbox on the caller's Session: an enqueue commits together with the caller's own write.

    Enqueuing, claiming and completing require `symphony_executor`. Resolving unknown outcomes and
    other interventions require `symphony_control`. Run claim, complete and repair under READ
    COMMITTED. They are also correct under stricter isolation levels, but raise SerializationFailure
    (40001) under contention.
    """

    def enqueue(self, new: NewOutboxItem) -> OutboxItemRecord:
        """Enqueue one item. The rules and errors are those of `enqueue_many`."""
        return self.enqueue_many([instance("new", NewOutboxItem, new)])[0]

    def enqueue_many(self, news: Iterable[NewOutboxItem]) -> list[OutboxItemRecord]:
        """Enqueue up to 10,000 items, all or none, in one round trip. The records are in input
        order.

        If a key (`instruction_id`, `idempotency_key`) was enqueued before with the same
        participant, rail and payload, the newest item of the key is returned, live or finished.

        Raises OutboxKeyConflict (P7004, INV-OUT-004), KillSwitchEngaged (P7501, INV-KIL-001),
        InstructionStateForbids (P7404) unless the instruction is AUTHORIZED or EXECUTING
        (INV-INS-006) and the outcome of each of its items is known (INV-OUT-010),
        ForeignKeyViolation (23503, INV-INS-005) if the participant has no such
        instruction, InvalidParameterValue (22023, INV-API-001) for more than 10,000,
        SerializationFailure (40001) if the snapshot is too old to see the key.
        """
        items = dump_inputs("news", NEWS, instances("news", NewOutboxItem, news))
        rows = self._rows(ENQUEUE, {"items": items})
        return [OutboxItemRecord.from_row(row) for row in rows]

    def claim(
        self,
        worker_id: str,
        *,
        batch_size: int,
        lease: timedelta,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> list[ClaimedItem]:
        """Lease up to `batch_size` due items (1 to 10,000) for `lease` (1 s to 1 day).

        The items that have been due longest come first. The batch is full if enough items are due
        and free. But it ends before its payloads and contexts exceed `max_bytes` of JSON text
        (1 byte to 1 GiB, default 16 MiB); a first item that is larger is returned alone. Items of
        a stopped participant or rail are left out. Items that are left out stay due.

        Commit before calling a rail, so that the openings are stored before the side effect. If
        the reply to the claim or to its COMMIT is lost, `held` returns the same items.

        If a lease has expired, the claim closes its attempt as ZOMBIE_REQUEUE and hands the item
        out again. If that attempt was the item's last, the claim ends the item instead: FAILED,
        outcome UNKNOWN, error_code RETRY_CEILING_EXCEEDED. It does not return such an item;
        `unresolved` lists it until its outcome is resolved.

        Raises KillSwitchEngaged (P7501, INV-KIL-001) under GLOBAL or DISPATCH,
        InvalidParameterValue (22023, INV-API-001).
        """
        rows = self._rows(
            CLAIM,
            {
                "worker_id": argument("worker_id", WORD, worker_id),
                "batch_size": argument("batch_size", COUNT, batch_size),
                "lease": microseconds(argument("lease", DURATION, lease)),
                "max_bytes": argument("max_bytes", COUNT, max_bytes),
            },
        )
        return [ClaimedItem.from_row(row) for row in rows]

    def held(self, worker_id: str) -> list[ClaimedItem]:
        """Return the items under unexpired leases of `worker_id`, with tokens and payloads.

        If the reply to a committed claim was lost, the worker continues with these items. The
        oldest claim comes first. Workers with the same `worker_id` get the same items.
        """
        rows = self._rows(HELD, {"worker_id": argument("worker_id", WORD, worker_id)})
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
        """Record how the attempt ended. A repeated completion returns what is recorded.

        A RETRYABLE at the item's last attempt is recorded as FAILED, RETRY_CEILING_EXCEEDED.

        Raises LeaseLost (P7002, INV-OUT-002). In that case record the rail's answer by
        `record_late_result`.
        """
        instance("item", ClaimedItem, item)
        instance("completion", Completion, completion)
        return self._complete([(item, completion)], partial=False)[0]

    def complete_many(
        self, pairs: Iterable[tuple[ClaimedItem, Completion]]
    ) -> list[CompletionResult]:
        """Record how up to 10,000 attempts ended, in one round trip. Results are in input order.

        A lost lease is reported in the result of its pair, and the other pairs are recorded. Any
        other refusal raises and undoes the call: NotFound (P0002, INV-API-002) for an unknown item,
        InvalidParameterValue (22023, INV-API-001) for more than 10,000.
        """
        return self._complete(pairs, partial=True)

    def repair_expired(self, *, limit: int) -> list[RepairedAttempt]:
        """Close up to `limit` (0 to 10,000) attempts whose lease has expired, as a claim would.

        Returns each attempt that it closed, FAILED ones included. Attempts that claims have closed
        are in `attempts`; items that ended with the outcome UNKNOWN are in `unresolved`.

        Raises InvalidParameterValue (22023, INV-API-001).
        """
        rows = self._rows(REPAIR, {"limit": argument("limit", COUNT, limit)})
        return [RepairedAttempt.from_row(row) for row in rows]

    def redrive(self, outbox_id: UUID) -> OutboxItemRecord:
        """Enqueue a failed item again. A second call returns the live successor, `replayed`.

        The item must be FAILED, and its outcome must be REJECTED or NOT_SENT, as the worker
        reported it or as control resolved it: the payment was not made.

        Raises NotFound (P0002, INV-API-002), InvalidAttemptTransition (P7005, INV-OUT-006),
        InstructionStateForbids (P7404) if the instruction has ended (INV-INS-006) or has another
        item whose outcome is unknown (INV-OUT-010).
        """
        row = self._row(REDRIVE, {"outbox_id": argument("outbox_id", ID, outbox_id)})
        return OutboxItemRecord.from_row(one(row))

    def record_late_result(
        self, item: ClaimedItem, *, outcome: LateOutcome | str, rail_reference: str | None = None
    ) -> LateResultRecord:
        """Record the rail's answer after the lease was lost. Only the attempt's worker can do it.

        The result is stored whatever the state of the item is. It does not resolve an UNKNOWN item;
        only control does. SENT after REJECTED or NOT_SENT makes the outcome unknown again. If the
        same result is repeated, the recorded one is returned, `replayed`.

        Raises LeaseLost (P7002, INV-OUT-011) if the token is not the token of this attempt.
        """
        instance("item", ClaimedItem, item)
        row = self._row(
            LATE_RESULT,
            {
                "outbox_id": item.outbox_id,
                "attempt_no": item.attempt_no,
                "outcome": argument("outcome", LATE_OUTCOME, outcome),
                "lease_token": item.lease_token,
                "rail_reference": argument("rail_reference", KEY_OR_NONE, rail_reference),
                "worker_id": item.worker_id,
            },
        )
        return LateResultRecord.from_row(one(row))

    def resolve(
        self,
        outbox_id: UUID,
        *,
        outcome: LateOutcome | str,
        reason: str,
        by: str | None = None,
        rail_reference: str | None = None,
    ) -> LateResultRecord:
        """Record what the rail did with a terminal item, according to reconciliation.

        The newest resolution counts. After SENT the instruction can complete. After REJECTED or
        NOT_SENT the item can be redriven, or the instruction can fail. `by` defaults to the login.

        Raises NotFound (P0002, INV-API-002), InvalidAttemptTransition (P7005, INV-OUT-011) if the
        item has not ended.
        """
        row = self._row(
            RESOLVE,
            {
                "outbox_id": argument("outbox_id", ID, outbox_id),
                "outcome": argument("outcome", LATE_OUTCOME, outcome),
                "reason": argument("reason", REASON, reason),
                "by": argument("by", KEY_OR_NONE, by),
                "rail_reference": argument("rail_reference", KEY_OR_NONE, rail_reference),
            },
        )
        return LateResultRecord.from_row(one(row))

    def cancel(self, outbox_id: UUID, *, reason: str, by: str | None = None) -> InterventionRecord:
        """End an item that nobody has claimed: FAILED, NOT_SENT, error_code CANCELLED.

        If an earlier attempt may have sent the payment (its lease expired, or it was RETRYABLE
        without an outcome), the item ends UNKNOWN instead and must be resolved.

        Raises NotFound (P0002, INV-API-002), InvalidAttemptTransition (P7005, INV-OUT-005) if the
        item is claimed or has ended.
        """
        return self._intervene(CANCEL, outbox_id, reason=argument("reason", REASON, reason), by=by)

    def reschedule(self, outbox_id: UUID, *, due_at: datetime) -> InterventionRecord:
        """Set another due time, at most 400 days ahead, for an item that nobody has claimed.

        Raises NotFound (P0002, INV-API-002), InvalidAttemptTransition (P7005, INV-OUT-005) if the
        item is claimed or has ended, InvalidParameterValue (22023, INV-API-001).
        """
        row = self._row(
            RESCHEDULE,
            {
                "outbox_id": argument("outbox_id", ID, outbox_id),
                "due_at": argument("due_at", TIME, due_at),
            },
        )
        return InterventionRecord.from_row(one(row))

    def expire_lease(
        self, outbox_id: UUID, *, reason: str, by: str | None = None
    ) -> InterventionRecord:
        """End a live lease. The next claim or repair closes the attempt, as after a crash.

        First make sure that the worker has stopped: ending the lease does not stop a call to the
        rail.

        Raises NotFound (P0002, INV-API-002), LeaseLost (P7002, INV-OUT-002) without a live lease.
        """
        return self._intervene(
            EXPIRE_LEASE, outbox_id, reason=argument("reason", REASON, reason), by=by
        )

    def close_contradiction(
        self, outbox_id: UUID, result_no: int, *, reason: str, by: str | None = None
    ) -> InterventionRecord:
        """Remove a late result from `contradictions()`. `reason` must say what was found and done.

        Raises NotFound (P0002, INV-API-002), InvalidAttemptTransition (P7005, INV-OUT-011) if it
        contradicts nothing or was already closed with a different reason.
        """
        return self._intervene(
            CLOSE_CONTRADICTION,
            outbox_id,
            result_no=argument("result_no", COUNT, result_no),
            reason=argument("reason", REASON, reason),
            by=by,
        )

    def unresolved(self) -> list[UnresolvedItem]:
        """Return the items whose outcome is UNKNOWN, oldest first. Control must resolve them."""
        return [UnresolvedItem.from_row(row) for row in self._rows(UNRESOLVED)]

    def contradictions(self) -> list[OutboxContradiction]:
        """Return the late results that contradict what is recorded and are not closed, oldest
        first."""
        return [OutboxContradiction.from_row(row) for row in self._rows(CONTRADICTIONS)]

    def get(self, outbox_id: UUID) -> OutboxStatus | None:
        """Return the state of the item, or None."""
        row = self._row(STATUS, {"outbox_id": argument("outbox_id", ID, outbox_id)})
        return OutboxStatus.from_row(row) if row else None

    def attempts(self, outbox_id: UUID) -> list[AttemptRecord]:
        """Return every opening and closing of the item, in order."""
        rows = self._rows(
            select(ATTEMPTS)
            .where(ATTEMPTS.c.outbox_id == argument("outbox_id", ID, outbox_id))
            .order_by(ATTEMPTS.c.attempt_no, ATTEMPTS.c.phase.desc())
        )
        return [AttemptRecord.from_row(row) for row in rows]

    def depth(self) -> list[OutboxDepth]:
        """Return the queue depth per rail."""
        return [OutboxDepth.from_row(row) for row in self._rows(DEPTH)]

    def _intervene(
        self, act: TextClause, outbox_id: UUID, *, by: str | None, **given: object
    ) -> InterventionRecord:
        row = self._row(
            act,
            {
                "outbox_id": argument("outbox_id", ID, outbox_id),
                "by": argument("by", KEY_OR_NONE, by),
                **given,
            },
        )
        return InterventionRecord.from_row(one(row))

    def _complete(
        self, pairs: Iterable[tuple[ClaimedItem, Completion]], *, partial: bool
    ) -> list[CompletionResult]:
        completions = dump_json(
            [
                item.model_dump(mode="json", include=LEASE) | completion.model_dump(mode="json")
                for item, completion in _pairs(pairs)
            ]
        )
        rows = self._rows(COMPLETE, {"completions": completions, "partial": partial})
        return [_result(row) for row in rows]


def _pairs(pairs: object) -> list[tuple[ClaimedItem, Completion]]:
    found: list[tuple[ClaimedItem, Completion]] = instances("pairs", tuple, pairs)
    instances("pairs", ClaimedItem, [pair[0] if len(pair) == 2 else None for pair in found])
    instances("pairs", Completion, [pair[1] for pair in found])
    return found


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
