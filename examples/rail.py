"""Simulates a payment rail. Its answer depends only on the payment, so every run is the same.

Of ten payments the rail accepts about seven at once, is first busy for two, and rejects one. The
rail is idempotent, as real ones are: if it gets a payment again with the same instruction and key,
it returns the same reference, and money moves once.
"""

import hashlib
import time
from datetime import timedelta
from uuid import UUID

from orchestration.records import Completion
from orchestration.vocabulary import CompletionState, Outcome

# ISO 20022 external status reasons: account closed, insufficient funds, creditor bank not reached.
REJECTIONS = ("AC04", "AM04", "AB08")
BUSY_FOR = timedelta(milliseconds=150)


def call(
    rail_type: str, *, instruction_id: UUID, idempotency_key: str, attempt_no: int
) -> Completion:
    """Submit a payment and wait a few milliseconds for the answer."""
    began = time.monotonic()
    dice = hashlib.sha256(idempotency_key.encode()).digest()
    time.sleep(0.002 + dice[1] / 25_000)
    latency_ms = round((time.monotonic() - began) * 1000)
    if dice[0] % 10 == 0:
        reason = REJECTIONS[dice[2] % len(REJECTIONS)]
        return Completion(
            state=CompletionState.FAILED,
            outcome=Outcome.REJECTED,
            rail_code=reason,
            error_code="REJECTED_BY_RAIL",
            error_message=f"the rail rejected the payment: {reason}",
            latency_ms=latency_ms,
        )
    busy_answers = {1: 1, 2: 2}.get(dice[0] % 10, 0)
    if attempt_no <= busy_answers:
        return Completion(
            state=CompletionState.RETRYABLE,
            outcome=Outcome.NOT_SENT,
            error_code="RAIL_BUSY",
            error_message="the rail is busy",
            retry_in=BUSY_FOR,
            latency_ms=latency_ms,
        )
    seen_as = hashlib.sha256(f"{rail_type}/{instruction_id}/{idempotency_key}".encode()).hexdigest()
    return Completion(
        state=CompletionState.DISPATCHED,
        rail_reference=f"{rail_type}-{seen_as[:12].upper()}",
        rail_code="ACSC",
        latency_ms=latency_ms,
    )
