"""The chapter with two workers: one is killed in the middle of its batch, the other continues."""

from collections import Counter, defaultdict
from uuid import UUID

from examples.crew import Crew, Event, WorkerFailed, crew
from examples.stage import Stage, StoryFailed, table
from sqlalchemy import text

from orchestration.errors import LeaseLost
from orchestration.records import ClaimedItem, Completion
from orchestration.repo import OutboxRepository
from orchestration.vocabulary import LateOutcome

SHORT_LEASE_SECONDS = 1
HANG_AFTER = 4

ZOMBIES = text(
    """
    SELECT outbox_id
    FROM orchestration.payment_outbox_attempts
    WHERE state = 'ZOMBIE_REQUEUE'
    ORDER BY outbox_id
    """
)


def workers(on: Stage) -> None:
    on.chapter("6  Two workers run, and one of them is killed")
    with crew(on.engines["executor"].url) as workers:
        tally: dict[str, Counter[str]] = defaultdict(Counter)
        held, answer = _work(on, workers, tally)
    shown = table("worker", "DISPATCHED", "RETRYABLE", "FAILED", "end")
    for worker, end in (("worker-a", "killed"), ("worker-b", "exit 0, nothing pending")):
        states = (str(tally[worker][state]) for state in ("DISPATCHED", "RETRYABLE", "FAILED"))
        shown.add_row(worker, *states, end)
    on.show(shown)
    zombies = set(on.run("auditor", lambda session: session.scalars(ZOMBIES).all()))
    if not held or not {item.outbox_id for item in held} <= zombies:
        raise StoryFailed("the killed worker's items were not requeued as ZOMBIE_REQUEUE")
    on.gap()
    on.refused(
        "the killed worker's late answer",
        LeaseLost,
        "executor",
        lambda session: OutboxRepository(session).complete(held[0], answer),
    )
    late = on.run(
        "executor",
        lambda session: OutboxRepository(session).record_late_result(
            held[0], outcome=LateOutcome.SENT, rail_reference=answer.rail_reference
        ),
    )
    on.say(f"The answer is stored as a late result: {late.outcome}, {late.rail_reference}.")


def _work(
    on: Stage, workers: Crew, tally: dict[str, Counter[str]]
) -> tuple[list[ClaimedItem], Completion]:
    """Run both workers to their end. Return the items that the killed worker held, and the answer
    of the rail that it had not recorded."""
    workers.start(
        *("worker-a", "--batch", "12", "--lease", str(SHORT_LEASE_SECONDS)),
        *("--hang-after", str(HANG_AFTER)),
    )
    workers.start("worker-b", "--batch", "20", "--lease", "30")
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
                    # If worker-b began earlier, worker-a might find no items to claim.
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
    raise AssertionError("the events of a crew end with an `ended` event")


def _tell_claim(on: Stage, event: Event, of_the_dead: set[UUID]) -> None:
    items = event.facts["items"]
    known = sum(1 for item in items if UUID(item["outbox_id"]) in of_the_dead)
    again = sum(1 for item in items if item["attempt_no"] > 1) - known
    kinds = [f"{again} to retry"] if again else []
    if known:
        kinds.append(f"[yellow]{known} of the killed worker, as ZOMBIE_REQUEUE[/]")
    _tell(on, event, f"claims {len(items)}" + (f": {', '.join(kinds)}" if kinds else ""))


def _tell(on: Stage, event: Event, what: str) -> None:
    on.say(f"[dim]{event.seconds:5.2f} s[/]  {event.worker}  {what}")
