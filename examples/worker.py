"""A worker process: it claims outbox items, calls the rail and records the answers. Each answer
commits together with the end of its instruction.

usage: DATABASE_URL=... python -m examples.worker WORKER_ID [--batch N] [--lease SECONDS]
       [--hang-after N]

The worker prints `ready` and begins at the first byte on stdin. It ends when nothing is pending, or
when its parent ends and stdin closes. Each event is one line of JSON on stdout. With
`--hang-after N` the worker stops for ever after it has recorded N answers, at the worst place: the
rail has accepted a payment, and the answer is not recorded yet.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from examples import rail
from examples.desk import ONLY_RUN
from sqlalchemy.orm import Session, sessionmaker

from orchestration.database import create_engine
from orchestration.errors import CommitOutcomeUnknown, LeaseLost
from orchestration.records import ClaimedItem, Completion, CompletionResult
from orchestration.repo import AttemptLogRepository, InstructionRepository, OutboxRepository
from orchestration.transactions import run_in_transaction
from orchestration.vocabulary import (
    AttemptOutcome,
    AttemptState,
    CompletionState,
    InstructionState,
    LateOutcome,
    Outcome,
)

IDLE_SECONDS = 0.1
MOST_REPLAYS = 20
STDIN = 0

T = TypeVar("T")


class Worker:
    def __init__(
        self,
        sessions: Callable[[], Session],
        worker_id: str,
        *,
        batch: int,
        lease: timedelta,
        hang_after: int | None,
    ) -> None:
        self._sessions = sessions
        self._id = worker_id
        self._batch = batch
        self._lease = lease
        self._hang_after = hang_after
        self._recorded = 0

    def run(self) -> None:
        """Work until nothing is pending, not even items that other workers have leased."""
        while True:
            items = self._claim()
            if items:
                emit("claimed", items=[shown(item) for item in items])
                for position, item in enumerate(items):
                    self._dispatch(item, items[position:])
            elif not self._replay(lambda session: OutboxRepository(session).depth()):
                return
            else:
                time.sleep(IDLE_SECONDS)

    def _claim(self) -> list[ClaimedItem]:
        # The claim commits before the call to the rail: the opening of an attempt is stored before
        # money can move.
        try:
            return run_in_transaction(
                self._sessions,
                lambda session: OutboxRepository(session).claim(
                    self._id, batch_size=self._batch, lease=self._lease
                ),
            )
        except CommitOutcomeUnknown as error:
            # A claim begins only when the batch before it has ended. So what this worker holds now
            # is what the lost reply contained, or nothing.
            emit("claim-unknown", sqlstate=error.sqlstate)
            return self._replay(lambda session: OutboxRepository(session).held(self._id))

    def _dispatch(self, item: ClaimedItem, held: list[ClaimedItem]) -> None:
        answer = rail.call(
            item.rail_type,
            instruction_id=item.instruction_id,
            idempotency_key=item.idempotency_key,
            attempt_no=item.attempt_no,
        )
        accepted = answer.state is CompletionState.DISPATCHED
        if accepted and self._hang_after is not None and self._recorded >= self._hang_after:
            emit(
                "hanging",
                held=[one.model_dump(mode="json") for one in held],
                answer=answer.model_dump(mode="json"),
            )
            threading.Event().wait()
        try:
            result = self._replay(lambda session: record(session, item, answer))
        except LeaseLost as error:
            # Another worker has the item now, and the rail recognizes the payment by its key. The
            # rail's answer to this worker is recorded as a late result.
            self._replay(lambda session: record_late(session, item, answer))
            emit("lease-lost", **shown(item), sqlstate=error.sqlstate)
        else:
            self._recorded += 1
            emit("recorded", **shown(item), state=result.state)

    def _replay(self, work: Callable[[Session], T]) -> T:
        """Run work that can be repeated. If the outcome of its COMMIT is unknown, run it again."""
        for _ in range(MOST_REPLAYS):
            try:
                return run_in_transaction(self._sessions, work)
            except CommitOutcomeUnknown as error:
                emit("outcome-unknown", sqlstate=error.sqlstate)
        return run_in_transaction(self._sessions, work)


def record(session: Session, item: ClaimedItem, answer: Completion) -> CompletionResult:
    """Record the answer, and end the instruction and its run: the item is its only one.

    A repetition changes nothing. The same completion with the same lease token returns what is
    recorded, and the instruction and its run have ended in the same transaction.
    """
    result = OutboxRepository(session).complete(item, answer)
    instructions, runs = InstructionRepository(session), AttemptLogRepository(session)
    instruction = instructions.get(item.instruction_id)
    assert instruction is not None
    if instruction.state is not InstructionState.EXECUTING:
        return result
    if result.state is AttemptState.DISPATCHED:
        instructions.complete(instruction.id, version=instruction.version)
        runs.close_execution(instruction.id, ONLY_RUN, outcome=AttemptOutcome.SUCCEEDED)
    elif result.state is AttemptState.FAILED:
        reason = answer.error_message or "the payment failed"
        instructions.fail(instruction.id, version=instruction.version, reason=reason)
        runs.close_execution(
            instruction.id, ONLY_RUN, outcome=AttemptOutcome.FAILED, error_message=reason
        )
    return result


def record_late(session: Session, item: ClaimedItem, answer: Completion) -> None:
    """Record the rail's answer after the lease was lost, if it contains an outcome."""
    if answer.state is CompletionState.DISPATCHED:
        outcome = LateOutcome.SENT
    elif answer.outcome in (Outcome.REJECTED, Outcome.NOT_SENT):
        outcome = LateOutcome(answer.outcome)
    else:
        return
    OutboxRepository(session).record_late_result(
        item, outcome=outcome, rail_reference=answer.rail_reference
    )


def shown(item: ClaimedItem) -> dict[str, Any]:
    return {
        "outbox_id": str(item.outbox_id),
        "key": item.idempotency_key,
        "attempt_no": item.attempt_no,
    }


def emit(event: str, **facts: Any) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def end_with_parent() -> None:
    # Do not use Python's buffers: this thread would hold their lock during interpreter shutdown.
    while os.read(STDIN, 64):
        pass
    os._exit(1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.worker")
    parser.add_argument("worker_id")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lease", type=float, default=30.0, help="seconds")
    parser.add_argument("--hang-after", type=int)
    options = parser.parse_args()
    engine = create_engine(os.environ["DATABASE_URL"])
    try:
        engine.connect().close()
        emit("ready", pid=os.getpid())
        if not os.read(STDIN, 1):
            return 1
        threading.Thread(target=end_with_parent, daemon=True).start()
        Worker(
            sessionmaker(engine),
            options.worker_id,
            batch=options.batch,
            lease=timedelta(seconds=options.lease),
            hang_after=options.hang_after,
        ).run()
    finally:
        engine.dispose()
    emit("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
