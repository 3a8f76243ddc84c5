"""Attacks on the two logs of an instruction's attempts."""

from collections.abc import Iterator

from tests.invariants.attacks.base import (
    LATER,
    Attack,
    Noun,
    Row,
    attest,
    authorize,
    changes,
    copy,
    deletes,
    insert,
    inserts,
    rotate,
    truncates,
    updates,
)

EXECUTIONS, TRANSACTIONS = "execution_attempts", "transaction_attempts"
LOGS = (EXECUTIONS, TRANSACTIONS)
KEY = "instruction_id, attempt_no, phase"

ATTESTATION = "00000000-0000-0000-0000-000000000000"
UNTRIED, OPEN, FAILED, SUCCEEDED, AGAIN, OF_Q, NOWHERE = (
    f"00000000-0000-0000-0000-{number:012}" for number in range(1, 8)
)
"""Instructions without an attempt, with one that is open, with one that ended so, and with a second
one that is open; an instruction of participant q; and an id that no instruction has."""


def row(log: str, id: str, attempt_no: int, phase: str, **changed: str) -> Row:
    """A whole row: a trigger or a default has nothing to fill in."""
    whole = {
        "instruction_id": f"'{id}'",
        "attempt_no": str(attempt_no),
        "phase": f"'{phase}'",
        "participant_id": "'p'",
        "worker_id": "'w'",
        "outcome": "'FAILED'" if phase == "CLOSE" else "NULL",
        "error_code": "NULL",
        "error_message": "NULL",
        "occurred_at": "'2020-01-01Z'",
        "db_user": "'forger'",
        "xact_id": "1",
    }
    if log == TRANSACTIONS:
        whole |= {"rail_type": "'SEPA'", "rail_reference": "NULL"}
    assert changed.keys() <= whole.keys()
    return whole | changed


def foreign_key(log: str) -> str:
    return f"constraints/fk_{log}_participant_id_instruction_id"


def orders(log: str) -> Iterator[Attack]:
    guard = f"triggers/{log}__guard"

    def refused(
        name: str, values: Row, *without: str, column: str = "attempt_no", **more: object
    ) -> Attack:
        detail = {key: values[key].strip("'") for key in ("instruction_id", "phase")} | more
        detail["attempt_no"] = int(values["attempt_no"])
        return Attack(
            *(f"{log}: {name}", "INV-APP-002", "P7401", log, detail, (guard, *without)),
            column=column,
            statements=(insert(log, values),),
        )

    second = row(log, OPEN, 2, "OPEN")
    of_second = refused("a second attempt beside the first", second)
    yield from of_second.each(
        inserts(of_second.name, log, second) | {f"{of_second.name} by COPY": copy(log, second)}
    )
    yield refused("a third attempt beside the second", row(log, AGAIN, 3, "OPEN"))
    yield refused("an attempt after a success", row(log, SUCCEEDED, 2, "OPEN"))
    yield refused("a number left out", row(log, FAILED, 3, "OPEN"))
    yield refused("a first attempt that is the second", row(log, UNTRIED, 2, "OPEN"))
    before = row(log, UNTRIED, 0, "OPEN")
    yield refused("a number before the first", before, f"constraints/ck_{log}_attempt_no")
    yield refused("the closing of what was never opened", row(log, UNTRIED, 1, "CLOSE"))
    yield refused("the closing of the next attempt", row(log, FAILED, 2, "CLOSE"))
    success = row(log, OPEN, 2, "CLOSE", outcome="'SUCCEEDED'")
    yield refused("a success of what was never opened", success)

    others = {"participant_id": "'q'", "worker_id": "'another'"}
    if log == TRANSACTIONS:
        others["rail_type"] = "'SWIFT'"
    for column, value in others.items():
        without = (foreign_key(log),) if column == "participant_id" else ()
        values = row(log, OPEN, 1, "CLOSE", **{column: value})
        yield refused(f"a closing with another {column}", values, *without, column="worker_id")

    for id, no, phase in ((FAILED, 2, "OPEN"), (OPEN, 1, "CLOSE")):
        future = row(log, id, no, phase, occurred_at=LATER)
        yield refused(f"{phase} in the future", future, column="occurred_at", occurred_at=...)
        for moment in ("infinity", "-infinity"):
            yield refused(
                f"{phase} at {moment}",
                row(log, id, no, phase, occurred_at=f"'{moment}'"),
                f"constraints/ck_{log}_years",
                column="occurred_at",
                occurred_at=moment,
            )


def rows(log: str) -> Iterator[Attack]:
    def native(sqlstate: str, name: str, *, replica: bool = True) -> Attack:
        return Attack(
            *("", "INV-APP-002", sqlstate, log, None, (f"constraints/{name}",)),
            constraint=name,
            replica=replica,
        )

    twice, untried = native("23505", f"pk_{log}"), row(log, UNTRIED, 1, "OPEN")
    again = row(log, FAILED, 1, "OPEN", worker_id="'another'")
    success = row(log, FAILED, 1, "CLOSE", outcome="'SUCCEEDED'")
    yield from twice.each(
        {
            f"{log}: an attempt opened twice": insert(log, row(log, OPEN, 1, "OPEN")),
            f"{log}: an attempt opened again": insert(log, again),
            f"{log}: an attempt closed twice": insert(log, row(log, FAILED, 1, "CLOSE")),
            f"{log}: a failure closed as a success": insert(log, success),
            f"{log}: a success closed as a failure": insert(log, row(log, SUCCEEDED, 1, "CLOSE")),
            f"{log}: an attempt opened by two rows": insert(log, *[untried] * 2),
        }
    )
    orphan = native("23503", foreign_key(log).partition("/")[2], replica=False)
    of_q = row(log, UNTRIED, 1, "OPEN", participant_id="'q'")
    next_of_q = row(log, FAILED, 2, "OPEN", participant_id="'q'")
    yield from orphan.each(
        {
            f"{log}: an attempt of no instruction": insert(log, row(log, NOWHERE, 1, "OPEN")),
            f"{log}: an attempt of another participant": insert(log, of_q),
            f"{log}: a next attempt of another participant": insert(log, next_of_q),
        }
    )
    for name, values in {
        "an opening with an outcome": row(log, UNTRIED, 1, "OPEN", outcome="'SUCCEEDED'"),
        "a closing without an outcome": row(log, OPEN, 1, "CLOSE", outcome="NULL"),
        "an unknown outcome": row(log, OPEN, 1, "CLOSE", outcome="'MAYBE'"),
        "an outcome in lower case": row(log, OPEN, 1, "CLOSE", outcome="'failed'"),
        "an unknown phase": row(log, OPEN, 1, "HALF"),
    }.items():
        yield native("23514", f"ck_{log}_outcome").by(f"{log}: {name}", insert(log, values))


def rewritings(log: str) -> dict[str, tuple[str, ...]]:
    """A value for each column, and what else refuses it."""
    outcome, key = f"constraints/ck_{log}_outcome", f"constraints/pk_{log}"
    common = {
        "instruction_id": (f"'{UNTRIED}'",),
        "attempt_no": ("7",),
        "phase": ("'OPEN'", key, outcome),
        "participant_id": ("'q'", foreign_key(log)),
        "worker_id": ("'forged'",),
        "outcome": ("'SUCCEEDED'",),
        "error_code": ("'forged'",),
        "error_message": ("'forged'",),
        "occurred_at": ("'2020-01-02Z'",),
        "db_user": ("'forged'",),
        "xact_id": ("xact_id",),
    }
    of_a_call = {"rail_type": ("'forged'",), "rail_reference": ("'forged'",)}
    return common | (of_a_call if log == TRANSACTIONS else {})


def append_only(log: str) -> Iterator[Attack]:
    guard = f"triggers/{log}__append_only"
    refused = Attack(
        *("", "INV-APP-001", "P0001", log),
        {"instruction_id": FAILED, "attempt_no": 1, "phase": "CLOSE"},
        (guard,),
    )
    where = f"({KEY}) = ('{FAILED}', 1, 'CLOSE')"
    for column, (value, *behind) in rewritings(log).items():
        yield from refused.each(changes(log, where, {column: value}), without=(guard, *behind))
    yield from refused.each(
        updates(
            *(f"{log}: another outcome", log, "outcome = 'SUCCEEDED'", where),
            *(row(log, FAILED, 1, "CLOSE"), KEY),
        )
    )
    yield from refused.each(deletes(log, where))
    yield from refused.each(truncates(log), detail={}, without=(f"triggers/{log}__no_truncate",))


OPENED = (OPEN, FAILED, SUCCEEDED, AGAIN)
CLOSED = ((FAILED, "FAILED"), (SUCCEEDED, "SUCCEEDED"), (AGAIN, "ABANDONED"))

ATTEMPT_LOG = Noun(
    tuple(attack for log in LOGS for made in (orders, rows, append_only) for attack in made(log)),
    {
        "": (
            rotate("v1"),
            attest(ATTESTATION, policy="v1"),
            *authorize(
                ATTESTATION, "v1", {"p": (UNTRIED, OPEN, FAILED, SUCCEEDED, AGAIN), "q": (OF_Q,)}
            ),
            *(insert(log, row(log, id, 1, "OPEN")) for log in LOGS for id in OPENED),
            *(
                insert(log, row(log, id, 1, "CLOSE", outcome=f"'{outcome}'"))
                for log in LOGS
                for id, outcome in CLOSED
            ),
            *(insert(log, row(log, AGAIN, 2, "OPEN")) for log in LOGS),
        )
    },
)
