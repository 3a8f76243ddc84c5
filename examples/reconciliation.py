"""Compares the file with the database, transaction by transaction, in SQL."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from examples.pain001 import MINOR_UNITS, CreditTransfer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.orm import Session

# A transaction of the file and one of the database are the same payment if participant, key, rail,
# currency and amount are equal. If one of these differs, the payment is missing on one side and
# unknown on the other. A payment has ended once if its item and its instruction agree on its end.
COUNT = text(
    """
    WITH file AS (
      SELECT f.*, true AS in_file
      FROM jsonb_to_recordset(CAST(:file AS jsonb))
        AS f (participant text, key text, rail text, currency text, amount bigint)
    ), items AS (
      SELECT i.instruction_id,
             i.idempotency_key,
             i.rail_type,
             i.payload ->> 'currency' AS currency,
             (i.payload ->> 'amount_minor')::bigint AS amount,
             EXISTS (
               SELECT FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = i.outbox_id
             ) AS pending,
             (
               SELECT array_agg(t.state)
               FROM orchestration.payment_outbox_attempts t
               WHERE t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
             ) AS endings
      FROM orchestration.payment_outbox_items i
      -- If an item was redriven, only its successor counts.
      WHERE NOT EXISTS (
        SELECT FROM orchestration.payment_outbox_items r WHERE r.redrive_of = i.outbox_id
      )
    ), database AS (
      SELECT n.participant_id AS participant,
             n.idempotency_key AS key,
             coalesce(i.rail_type, 'not enqueued') AS rail,
             n.currency,
             n.amount_minor AS amount,
             true AS in_database,
             i.pending,
             i.endings,
             NOT i.pending
               AND cardinality(i.endings) = 1
               AND (i.endings[1], n.state)
                 IN (('DISPATCHED', 'COMPLETED'), ('FAILED', 'FAILED'))
               AND (i.idempotency_key, i.currency, i.amount)
                 = (n.idempotency_key, n.currency, n.amount_minor) AS ended
      FROM orchestration.instructions n
      LEFT JOIN items i ON i.instruction_id = n.id
    ), judged AS (
      SELECT *, coalesce(in_file AND ended, false) AS ended_once
      FROM file
      FULL JOIN database USING (participant, key, rail, currency, amount)
    )
    SELECT rail,
           currency,
           count(*) FILTER (WHERE in_file) AS in_file,
           coalesce(sum(amount) FILTER (WHERE in_file), 0)::bigint AS file_minor,
           count(*) FILTER (WHERE ended_once AND endings[1] = 'DISPATCHED') AS dispatched,
           coalesce(
             sum(amount) FILTER (WHERE ended_once AND endings[1] = 'DISPATCHED'), 0
           )::bigint AS dispatched_minor,
           count(*) FILTER (WHERE ended_once AND endings[1] = 'FAILED') AS failed,
           coalesce(
             sum(amount) FILTER (WHERE ended_once AND endings[1] = 'FAILED'), 0
           )::bigint AS failed_minor,
           count(*) FILTER (WHERE pending) AS pending,
           count(*) FILTER (WHERE NOT ended_once) AS wrong
    FROM judged
    GROUP BY rail, currency
    ORDER BY rail, currency
    """
)


@dataclass(frozen=True)
class Line:
    """One rail and currency, with amounts in minor units. `wrong` counts the payments that are
    missing in the database, not in the file, pending, or ended more than once."""

    rail: str
    currency: str
    in_file: int
    file_minor: int
    dispatched: int
    dispatched_minor: int
    failed: int
    failed_minor: int
    pending: int
    wrong: int

    @property
    def balances(self) -> bool:
        return (
            self.wrong == 0
            and self.pending == 0
            and self.in_file == self.dispatched + self.failed
            and self.file_minor == self.dispatched_minor + self.failed_minor
        )


@dataclass(frozen=True)
class Reconciliation:
    lines: tuple[Line, ...]

    @property
    def in_file(self) -> int:
        return sum(line.in_file for line in self.lines)

    @property
    def ended_once(self) -> int:
        return sum(line.dispatched + line.failed for line in self.lines)

    @property
    def balances(self) -> bool:
        return self.in_file > 0 and all(line.balances for line in self.lines)


def reconcile(session: Session, transfers: Sequence[CreditTransfer]) -> Reconciliation:
    """Compare the file with the instructions and the outbox. Requires `symphony_auditor` or
    `symphony_control`."""
    file = [
        {
            "participant": transfer.debtor_name,
            "key": transfer.end_to_end_id,
            "rail": transfer.rail,
            "currency": transfer.currency,
            "amount": transfer.amount_minor,
        }
        for transfer in transfers
    ]
    rows = session.execute(COUNT, {"file": json.dumps(file)}).mappings()
    return Reconciliation(tuple(Line(**row) for row in rows))


def conclude(console: Console, found: Reconciliation) -> int:
    """Print the result and return the exit code: 0 if everything balances, otherwise 1."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("rail", "ccy"):
        table.add_column(heading, no_wrap=True)
    for heading in ("file", "dispatched", "failed", "pending", "wrong"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("balances")
    for line in found.lines:
        table.add_row(
            line.rail,
            line.currency,
            _figures(line.in_file, line.file_minor, line.currency),
            _figures(line.dispatched, line.dispatched_minor, line.currency),
            _figures(line.failed, line.failed_minor, line.currency),
            str(line.pending),
            str(line.wrong),
            "[green]yes[/]" if line.balances else "[bold red]NO[/]",
        )
    console.print(Padding(table, (1, 0, 1, 2), expand=False))
    if found.balances:
        ended = f"{found.ended_once} of {found.in_file}"
        console.print(f"[bold green]Balanced: {ended} transactions ended exactly once.[/]")
        return 0
    wrong = sum(line.wrong for line in found.lines)
    console.print(
        f"[bold red]Not balanced: {found.ended_once} of {found.in_file} transactions ended exactly"
        f" once, {wrong} wrong.[/]"
    )
    return 1


def _figures(count: int, minor: int, currency: str) -> str:
    if count == 0:
        return "-"
    digits = MINOR_UNITS.get(currency, 0)
    return f"{count} {minor / 10**digits:>12,.{digits}f}"
