"""Does the database account for the file? Counted by SQL, transaction by transaction."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.orm import Session

from examples.ingress import instruction_id
from examples.pain001 import MINOR_UNITS, CreditTransfer

# A transaction of the file and its item are the same thing if identity, rail, currency and amount
# agree: whatever differs stands as missing on one side and as unknown on the other.
COUNT = text(
    """
    WITH file AS (
      SELECT *
      FROM jsonb_to_recordset(CAST(:file AS jsonb))
        AS f (instruction_id uuid, key text, rail text, currency text, amount bigint)
    ), item AS (
      SELECT i.instruction_id, i.idempotency_key AS key, i.rail_type AS rail,
             i.payload ->> 'currency' AS currency, (i.payload ->> 'amount_minor')::bigint AS amount,
             count(t.state) AS endings,
             bool_or(t.state = 'DISPATCHED') AS dispatched,
             EXISTS (
               SELECT FROM orchestration.payment_outbox_pending p WHERE p.outbox_id = i.outbox_id
             ) AS pending
      FROM orchestration.payment_outbox_items i
      LEFT JOIN orchestration.payment_outbox_attempts t
        ON t.outbox_id = i.outbox_id AND t.state IN ('DISPATCHED', 'FAILED')
      GROUP BY i.outbox_id
    ), side_by_side AS (
      SELECT rail, currency, f.amount AS stated, i.amount AS found, i.dispatched,
             f IS NOT NULL AS in_file,
             i IS NOT NULL AS in_database,
             coalesce(i.endings = 1 AND NOT i.pending, false) AS ended
      FROM (SELECT f.*, f AS f FROM file f) f
      FULL JOIN (SELECT i.*, i AS i FROM item i) i
        USING (instruction_id, key, rail, currency, amount)
    )
    SELECT 1
    """
)
