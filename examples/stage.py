"""The setup of the demo: the four logins at the database, and the list of refusals."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from examples.credentials import Authority, Caller
from examples.ingress import Accepted, accept
from examples.pain001 import CreditTransfer, as_payload
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker
from tools import scratch

from orchestration.database import create_engine
from orchestration.errors import OrchestrationError
from orchestration.transactions import run_in_transaction

ROLES = ("ingest", "executor", "control", "auditor")

T = TypeVar("T")


class StoryFailed(RuntimeError):
    """The database did something that the demo does not expect."""


@dataclass(frozen=True)
class Refusal:
    tried: str
    error: OrchestrationError


@dataclass
class Stage:
    """The logins and callers of the demo, and the refusals so far."""

    console: Console
    transfers: Sequence[CreditTransfer]
    engines: Mapping[str, Engine]
    authority: Authority = field(default_factory=lambda: Authority("Lanternwick Client CA"))
    callers: dict[str, Caller] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)

    def run(self, role: str, work: Callable[[Session], T]) -> T:
        """Run one transaction as this login."""
        return run_in_transaction(sessionmaker(self.engines[role]), work)

    def refused(
        self,
        tried: str,
        wanted: type[OrchestrationError],
        role: str,
        work: Callable[[Session], object],
    ) -> None:
        """Run `work`. The database must refuse it with this exception."""
        try:
            self.run(role, work)
        except wanted as error:
            self.refusals.append(Refusal(tried, error))
            self.say(f"[red]Refused:[/] {tried} ({error.sqlstate} {type(error).__name__}).")
        else:
            raise StoryFailed(f"the database did not refuse: {tried}")

    def submit(
        self,
        transfer: CreditTransfer,
        *,
        policy: str = "v1",
        request: int = 1,
    ) -> Callable[[Session], Accepted]:
        """Let the debtor sign and the ingress verify. Return the work of the transaction."""
        signed = self.callers[transfer.debtor_name].sign(
            as_payload(transfer),
            request_id=f"{transfer.end_to_end_id}/{request}",
            policy=policy,
        )
        verified = self.authority.verify(signed)
        return lambda session: accept(session, verified)

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}[/]", align="left")

    def say(self, line: str) -> None:
        self.console.print(f"  {line}")

    def show(self, shown: Table) -> None:
        self.console.print(Padding(shown, (1, 0, 0, 2), expand=False))

    def gap(self) -> None:
        self.console.print()


@contextmanager
def stage(
    console: Console, database: scratch.Database, transfers: Sequence[CreditTransfer]
) -> Generator[Stage]:
    """Connect as the four logins. Close their connections after the block."""
    engines = {role: create_engine(database.as_role(role)) for role in ROLES}
    try:
        yield Stage(console, transfers, engines)
    finally:
        for engine in engines.values():
            engine.dispose()


def table(*headings: str, right: Sequence[str] = ()) -> Table:
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left")
    return made
