"""Runs payments of a pain.001 file through attestation, policy, revocation, instructions and outbox
on a real server. At the end it compares the file with the database.

usage: python -m examples.demo

If DATABASE_URL is set, the demo runs on that server, in a scratch database and with logins that are
dropped afterwards. Otherwise it starts a server. The exit code is 0 if the comparison balances.
"""

import signal
import sys
import time
from io import TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import cast

from alembic.util import CommandError
from examples import pain001, shift, stage, story, unknown
from examples.crew import WorkerFailed
from examples.ingress import HostBase
from examples.reconciliation import conclude, reconcile
from rich.console import Console
from rich.panel import Panel
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from tools import scratch

from orchestration.testing.embedded import EmbeddedServerError

FILE = Path(__file__).with_name("payments.pain.001.xml")
WIDTH = 108
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def tell(console: Console) -> int:
    """Run all chapters. Return 0 if the file and the database agree, otherwise 1."""
    transfers = pain001.read(FILE)
    debtors = {transfer.debtor_name for transfer in transfers}
    rails = {transfer.rail for transfer in transfers}
    currencies = {transfer.currency for transfer in transfers}
    console.print(
        Panel(
            f"[bold]{len(transfers)} payments, from the file to the rails[/]\n"
            f"{len(debtors)} debtors, {len(rails)} rails, {len(currencies)} currencies in"
            f" {FILE.name}, valid by its schema",
            expand=False,
        )
    )
    console.print()
    console.rule("[bold]1  A server, a schema, four logins[/]", align="left")
    began = time.monotonic()
    with scratch.server() as server:
        console.print(f"  PostgreSQL {server.version} ({server.kind}), {_since(began)}")
        began = time.monotonic()
        with scratch.database(server) as database:
            prepare_host(database)
            with stage.stage(console, database, transfers) as on:
                console.print(f"  alembic upgrade head in {database.name}, {_since(began)}")
                story.logins(on)
                story.activate_policy(on)
                accepted = story.submissions(on)
                story.authorizations(on, accepted)
                unknown.unknown_outcome(on)
                shift.workers(on)
                story.rotation(on)
                story.audit(on)
                story.refusals(on)
                on.chapter("10  The file against the database")
                found = on.run("auditor", lambda session: reconcile(session, transfers))
                return conclude(console, found)


def prepare_host(database: scratch.Database) -> None:
    """Create what a host service already has: its table, and the rights of its login."""
    with scratch.maintenance(database.url) as connection:
        HostBase.metadata.create_all(connection)
        ingest = database.as_role("ingest").username
        connection.execute(text(f'GRANT SELECT, INSERT ON public.payments TO "{ingest}"'))


def _since(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    # A second interrupt would disturb the cleanup.
    for one in INTERRUPTIONS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    cast("TextIOWrapper", sys.stdout).reconfigure(errors="replace")
    console = Console(width=WIDTH, highlight=False)
    for one in INTERRUPTIONS:
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, interrupt)
    try:
        return tell(console)
    except KeyboardInterrupt:
        console.print("Interrupted; nothing is left running.")
        return 130
    except (scratch.ScratchRefused, EmbeddedServerError, CommandError) as error:
        console.print(str(error), markup=False)
    except OperationalError as error:
        console.print(f"The server cannot be reached: {error.orig}", markup=False)
    except (stage.StoryFailed, WorkerFailed) as error:
        console.print(f"The demo failed: {error}", markup=False)
    return 1


if __name__ == "__main__":
    sys.exit(main())
