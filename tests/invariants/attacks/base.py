"""What an attack is, and the SQL forms that several nouns attack with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Final

Row = Mapping[str, str]
"""A whole row: an SQL expression per column."""
Detail = Mapping[str, str | int | EllipsisType | None]
"""DETAIL of a refusal: a value per key; `...` accepts any value."""

LATER: Final = "clock_timestamp() + interval '10 years'"
SELF: Final = {
    "db_user": "SESSION_USER",
    "xact_id": "CAST(CAST(pg_current_xact_id() AS text) AS bigint)",
}
"""The columns that say who wrote a row, as the database sets them."""
FORGER: Final = {"db_user": "'forger'", "xact_id": "1"}
SALT: Final = "decode(repeat('00', 16), 'hex')"


def payload_hash(payload: str, salt: str = SALT) -> str:
    """The expression that computes payload_hash of a JSON text, as docs/ describes it."""
    return (
        f"encode(sha256('orchestration.payload.v1'::bytea || {salt}"
        f" || convert_to(CAST(CAST('{payload}' AS jsonb) AS text), 'UTF8')), 'hex')"
    )


@dataclass(frozen=True)
class Attack:
    """The statements of one transaction, how the server refuses them, and what refuses them."""

    name: str
    invariant: str
    sqlstate: str
    table: str
    detail: Detail | None
    """The keys of the refusal; None if the refusal is the server's own and names `constraint`."""
    without: tuple[str, ...]
    """The objects, by their path in schema/current, without which the attack succeeds."""
    column: str | None = None
    constraint: str | None = None
    behind: tuple[str, ...] = ()
    """The objects that refuse the attack first: it is made without them, by the owner."""
    history: str = ""
    """Which history of its noun the attack needs."""
    replica: bool = True
    """Whether the attack is refused under session_replication_role = replica, too."""
    statements: tuple[str, ...] = ()
    """In order; the lines after the first one of a COPY are its data."""

    def __str__(self) -> str:
        return f"{self.invariant}: {self.name}"

    def by(self, name: str, *statements: str, **changed: object) -> "Attack":
        """The same refusal, provoked by these statements."""
        return replace(self, name=name, statements=statements, **changed)  # type: ignore[arg-type]

    def each(self, named: Mapping[str, str], **changed: object) -> list["Attack"]:
        """The same refusal, provoked by each of these statements alone."""
        return [self.by(name, statement, **changed) for name, statement in named.items()]


@dataclass(frozen=True)
class Noun:
    """The attacks on the tables of one noun."""

    attacks: tuple[Attack, ...]
    histories: Mapping[str, tuple[str, ...]]
    """What the owner executes in an empty database before the attacks, by the history's name."""
    sleeping: tuple[str, ...] = field(default=(), kw_only=True)
    """Objects that enforce a rule of this noun without refusing anything, so nothing attacks
    them; each has a test of its own."""


def insert(table: str, *rows: Row) -> str:
    values = ", ".join(f"({', '.join(row.values())})" for row in rows)
    return f"INSERT INTO orchestration.{table} ({', '.join(rows[0])}) VALUES {values}"


def copy(table: str, row: Row) -> str:
    """COPY of one row of literals; what follows the first line is its data."""
    data = "\t".join(
        "\\N"
        if value == "NULL"
        else value.removeprefix("'").removesuffix("'").replace("\\", "\\\\")
        for value in row.values()
    )
    return f"COPY orchestration.{table} ({', '.join(row)}) FROM STDIN\n{data}\n"


def update(table: str, change: str, where: str) -> str:
    return f"UPDATE orchestration.{table} SET {change} WHERE {where}"


def delete(table: str, where: str) -> str:
    return f"DELETE FROM orchestration.{table} WHERE {where}"


def changes(table: str, where: str, values: Mapping[str, str]) -> dict[str, str]:
    """One UPDATE per column."""
    return {
        f"{table}: {column} = {value}": update(table, f"{column} = {value}", where)
        for column, value in values.items()
    }


# The forms fire the same triggers, so one attack per table and kind of trigger is made in all.


def inserts(what: str, table: str, row: Row) -> dict[str, str]:
    return {
        f"{what} by INSERT": insert(table, row),
        f"{what} by INSERT ON CONFLICT DO NOTHING": insert(table, row) + " ON CONFLICT DO NOTHING",
        f"{what} by MERGE": (
            f"MERGE INTO orchestration.{table} USING (SELECT) AS s ON false WHEN NOT MATCHED THEN"
            f" INSERT ({', '.join(row)}) VALUES ({', '.join(row.values())})"
        ),
        f"{what} in a CTE": f"WITH i AS ({insert(table, row)} RETURNING 1) SELECT FROM i",
    }


def updates(what: str, table: str, change: str, where: str, row: Row, key: str) -> dict[str, str]:
    """`row` conflicts on the columns `key` with the row to be changed."""
    return {
        f"{what} by UPDATE": update(table, change, where),
        f"{what} by INSERT ON CONFLICT DO UPDATE": (
            f"{insert(table, row)} ON CONFLICT ({key}) DO UPDATE SET {change}"
        ),
        f"{what} by MERGE": (
            f"MERGE INTO orchestration.{table} USING (SELECT) AS s ON {where}"
            f" WHEN MATCHED THEN UPDATE SET {change}"
        ),
        f"{what} in a CTE": f"WITH u AS ({update(table, change, where)} RETURNING 1) SELECT FROM u",
    }


def deletes(table: str, where: str) -> dict[str, str]:
    what = f"removal from {table}"
    return {
        f"{what} by DELETE": delete(table, where),
        f"{what} by MERGE": (
            f"MERGE INTO orchestration.{table} USING (SELECT) AS s ON {where}"
            " WHEN MATCHED THEN DELETE"
        ),
        f"{what} in a CTE": f"WITH d AS ({delete(table, where)} RETURNING 1) SELECT FROM d",
    }


def truncates(*tables: str) -> dict[str, str]:
    named = ", ".join(f"orchestration.{table}" for table in tables)
    return {
        f"TRUNCATE of {', '.join(tables)}": f"TRUNCATE {named}",
        f"TRUNCATE CASCADE of {', '.join(tables)}": f"TRUNCATE {named} CASCADE",
    }


def moves(instruction_id: str, *states: str) -> tuple[str, ...]:
    """Statements that take an instruction through these states, with all the columns that replica
    mode needs because no trigger fills them in there."""
    return tuple(
        update(
            "instructions", f"version = version + 1, {becomes(state)}", f"id = '{instruction_id}'"
        )
        for state in states
    )


def becomes(state: str) -> str:
    """A change of state with what the row's own constraints require."""
    return (
        f"state = '{state}', reason = {repr('test') if state == 'FAILED' else 'NULL'}, completed_at"
        f" = {'clock_timestamp()' if state in ('COMPLETED', 'FAILED') else 'NULL'}"
    )


def rotate(id: str, grace: str = "1 hour") -> str:
    return (
        f"SELECT FROM orchestration.rotate_policy_version(p_id => '{id}', p_description => 'test',"
        f" p_checksum => repeat('0', 64), p_grace => '{grace}', p_created_by => 'test')"
    )


def attest(id: str, caller: str = "instructions", policy: str = "instructions") -> str:
    return (
        "INSERT INTO orchestration.ingress_attestations"
        " (id, caller_identity, idempotency_key, payload_hash, policy_version_id)"
        f" VALUES ('{id}', '{caller}', '{id}', repeat('0', 64), '{policy}')"
    )


def receive(attestation_id: str, policy: str, of: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Statements that enter instructions, given as their ids by participant."""
    listed = [(id, participant) for participant, ids in of.items() for id in ids]
    return tuple(
        "INSERT INTO orchestration.instructions (id, participant_id, idempotency_key,"
        " instruction_type, end_to_end_id, amount_minor, currency, debtor_account,"
        " creditor_account, payload, attestation_id, policy_version_id)"
        f" VALUES ('{id}', '{participant}', '{id}', 'pain.001', '{id}', 100, 'EUR', 'debtor',"
        f" 'creditor', '{{}}', '{attestation_id}', '{policy}')"
        for id, participant in listed
    )


def authorize(attestation_id: str, policy: str, of: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """The statements of `receive`, and one that authorizes all its instructions."""
    listed = ", ".join(f"'{id}'" for ids in of.values() for id in ids)
    return (
        *receive(attestation_id, policy, of),
        update("instructions", "state = 'AUTHORIZED'", f"id IN ({listed})"),
    )
