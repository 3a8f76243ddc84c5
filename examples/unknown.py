"""The chapter with an unknown outcome: from UNKNOWN to a redrive.

docs/unknown-outcomes.md describes all the steps; the demo shows one case.
"""

from datetime import timedelta

from examples.desk import enqueue
from examples.stage import Stage, StoryFailed, table
from sqlalchemy.orm import Session

from orchestration.errors import InstructionStateForbids, InvalidAttemptTransition
from orchestration.records import Completion, OutboxItemRecord
from orchestration.repo import InstructionRepository, OutboxRepository
from orchestration.vocabulary import CompletionState, LateOutcome, Outcome

TIMED_OUT = Completion(
    state=CompletionState.FAILED, outcome=Outcome.UNKNOWN, error_code="RAIL_TIMEOUT"
)


def unknown_outcome(on: Stage) -> None:
    on.chapter("5  A rail does not answer, and control resolves the outcome")
    (item,) = on.run(
        "executor",
        lambda session: OutboxRepository(session).claim(
            "worker-0", batch_size=1, lease=timedelta(seconds=30)
        ),
    )
    on.run("executor", lambda session: OutboxRepository(session).complete(item, TIMED_OUT))
    on.say(f"The rail does not answer for {item.idempotency_key}: its outcome is UNKNOWN.")

    def another_key(session: Session) -> OutboxItemRecord:
        instruction = InstructionRepository(session).get(item.instruction_id)
        assert instruction is not None
        renamed = instruction.model_copy(update={"idempotency_key": "a second try"})
        return enqueue(session, renamed, item.payload)

    on.refused("paying it again, another key", InstructionStateForbids, "executor", another_key)
    on.refused(
        "redriving it without a resolution",
        InvalidAttemptTransition,
        "control",
        lambda session: OutboxRepository(session).redrive(item.outbox_id),
    )
    shown = table("unresolved", "rail", "participant", "amount", "since", right=["amount"])
    for one in on.run("control", lambda session: OutboxRepository(session).unresolved()):
        shown.add_row(
            one.idempotency_key,
            one.rail_type,
            one.participant_id,
            f"{one.amount_minor} {one.currency} (minor units)",
            f"{one.since:%H:%M:%S}",
        )
    on.show(shown)
    on.gap()
    on.run(
        "control",
        lambda session: OutboxRepository(session).resolve(
            item.outbox_id,
            outcome=LateOutcome.NOT_SENT,
            reason="missing on the rail's statement of today",
            by="the operations desk",
        ),
    )
    made = on.run("control", lambda session: OutboxRepository(session).redrive(item.outbox_id))
    if made.redrive_of != item.outbox_id or made.replayed:
        raise StoryFailed("the resolved item was not redriven")
    on.say(
        "Control does not find the payment on the rail's statement, resolves it as"
        f" [green]{LateOutcome.NOT_SENT}[/] and redrives it."
    )
