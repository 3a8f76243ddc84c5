"""examples/worker.py, with a rail and answers that are written to a journal.

usage: JOURNAL=... DATABASE_URL=... [POOLER=1] python -m tests.faults.worker WORKER_ID [options]
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from examples import rail, worker

from orchestration.records import Completion
from tests.faults.journal import RAIL, Journal

journal = Journal(Path(os.environ["JOURNAL"]))
answer = rail.call
emit = worker.emit


def call(
    rail_type: str, *, instruction_id: UUID, idempotency_key: str, attempt_no: int
) -> Completion:
    # Noted before the rail answers, because money can move from this moment on.
    journal.note(RAIL, instruction_id=instruction_id, key=idempotency_key, attempt_no=attempt_no)
    return answer(
        rail_type,
        instruction_id=instruction_id,
        idempotency_key=idempotency_key,
        attempt_no=attempt_no,
    )


def note(event: str, **facts: Any) -> None:
    if event == "claimed":
        for item in facts["items"]:
            journal.note("claimed", **item)
    else:
        journal.note(event, **facts)
    emit(event, **facts)


if __name__ == "__main__":
    rail.call = call
    worker.emit = note
    if os.environ.get("POOLER"):
        worker.create_engine = partial(worker.create_engine, pooler=True)
    sys.exit(worker.main())
