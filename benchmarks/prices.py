"""Measures the cost of a rule: the same writes run with and without it, in turns.

usage: python -m benchmarks.prices [--rounds 3] [--items 5000]

The result is a ratio, the median over the rounds. The rules are removed one at a time, with their
triggers, constraints and gates; nothing else is changed.
"""

import argparse
import statistics
from collections.abc import Mapping
from typing import Final

from benchmarks.rates import ATTESTATION, Ours, server, timed, work_of
from rich.console import Console
from rich.table import Table
from tools import scratch

WITHOUT: Final[Mapping[str, str]] = {
    # The triggers, and the gate that the functions lock first.
    "the kill switch": """
SET ROLE symphony_owner;
DROP TRIGGER kill_switch ON orchestration.ingress_attestations;
DROP TRIGGER kill_switch ON orchestration.payment_outbox_items;
DROP TRIGGER kill_switch ON orchestration.payment_outbox_attempts;
ALTER FUNCTION orchestration.share_gate RENAME TO share_other_gate;
CREATE FUNCTION orchestration.share_gate(p_gate text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  IF p_gate <> 'kill_switch_gate' THEN
    PERFORM orchestration.share_other_gate(p_gate);
  END IF;
END
$$;
CREATE OR REPLACE FUNCTION orchestration.refuse_if_killed(
  p_scope text, p_participant_ids text[] DEFAULT NULL, p_rail_types text[] DEFAULT NULL
) RETURNS void
LANGUAGE sql RETURN NULL;
""",
    "the instructions' foreign key": """
SET ROLE symphony_owner;
ALTER TABLE orchestration.payment_outbox_pending
DROP CONSTRAINT fk_payment_outbox_pending_participant_id_instruction_id_open;
""",
    "the audit of redrives": """
SET ROLE symphony_owner;
DROP TRIGGER audit ON orchestration.payment_outbox_items;
""",
    # The difference between two runs in which nothing is removed.
    "nothing": "SET ROLE symphony_owner",
}


def rates(at: scratch.Server, without: str, items: int) -> dict[str, tuple[float, float]]:
    """Return (with, without) per second, by case."""
    with scratch.database(at) as whole, scratch.database(at) as lesser:
        with scratch.maintenance(lesser.url) as connection:
            connection.exec_driver_sql(without)
        sides = [Ours(whole, items), Ours(lesser, items)]
        for side in sides:
            side.receive()
            side.authorize()
        first, second = (work_of(side) | {ATTESTATION: side.attest_singly} for side in sides)
        found = {case: (timed(first[case]), timed(second[case])) for case in first}
        for side in sides:
            side.close()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=5_000)
    options = parser.parse_args()
    console = Console(width=110)
    with server() as at:
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            for rule, without in WITHOUT.items():
                for case, pair in rates(at, without, options.items).items():
                    found.setdefault((rule, case), []).append(pair)
        table = Table(title=f"PostgreSQL {at.version} ({at.kind}), medians of {options.rounds}")
        for heading in ("rule", "case", "with /s", "without /s", "price"):
            table.add_column(heading, justify="right" if "/s" in heading else "left")
        for (rule, case), pairs in found.items():
            whole, lesser = (statistics.median(side) for side in zip(*pairs, strict=True))
            price = 1 - statistics.median(a / b for a, b in pairs)
            table.add_row(rule, case, f"{whole:,.0f}", f"{lesser:,.0f}", f"{price:.1%}")
        console.print(table)


if __name__ == "__main__":
    main()
