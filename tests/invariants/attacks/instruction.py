"""Attacks on instructions and the history of their states."""

from collections.abc import Iterator

from tests.invariants.attacks.base import (
    LATER,
    Attack,
    Noun,
    Row,
    attest,
    authorize,
    becomes,
    changes,
    copy,
    deletes,
    insert,
    inserts,
    moves,
    rotate,
    truncates,
    update,
    updates,
)

INSTRUCTIONS, HISTORY = "instructions", "status_history"

RECEIVED, AUTHORIZED, EXECUTING, COMPLETED, FAILED, SENT, OF_Q, NEW, NOWHERE, ATTESTATION, OTHER = (
    f"00000000-0000-0000-0000-{number:012}" for number in range(1, 12)
)
IDS = {
    "RECEIVED": RECEIVED,
    "AUTHORIZED": AUTHORIZED,
    "EXECUTING": EXECUTING,
    "COMPLETED": COMPLETED,
    "FAILED": FAILED,
}
"""One instruction of each state, all of participant p. SENT is EXECUTING, too, and has an item that
was dispatched."""
FINAL = ("COMPLETED", "FAILED")
LEGAL = (
    *(("RECEIVED", "AUTHORIZED"), ("AUTHORIZED", "EXECUTING"), ("EXECUTING", "COMPLETED")),
    *(("RECEIVED", "FAILED"), ("AUTHORIZED", "FAILED"), ("EXECUTING", "FAILED")),
)

HISTORY_KEY = "constraints/fk_status_history_participant_id_instruction_id"
ATTESTED_KEY = "constraints/fk_instructions_attestation_id_policy_version_id"
ATTESTED = "constraints/uq_ingress_attestations_id_policy_version_id"
GUARD, GUARD_END = "triggers/instructions__guard", "triggers/instructions__guard_end"
HISTORY_INSERT = "triggers/instructions__history_insert"
HISTORY_UPDATE = "triggers/instructions__history_update"
TRANSITION = "constraints/ck_status_history_transition"


HASH = "473b9836702fe17e8799a7bc2a04d460e9edab1a1fc69c350877832c0a54cf63"
"""payload_hash of an empty object under a salt of zeros."""


def quoted(values: dict[str, str | None]) -> Row:
    """Literals; a value in parentheses is an expression."""
    return {
        column: "NULL" if value is None else value if value.startswith("(") else f"'{value}'"
        for column, value in values.items()
    }


def instruction(**changed: str | None) -> Row:
    """A whole row: a trigger or a default has nothing to fill in."""
    whole: dict[str, str | None] = {
        "id": NEW,
        "participant_id": "p",
        "idempotency_key": "new",
        "instruction_type": "pain.001",
        "end_to_end_id": "new",
        "uetr": None,
        "value_date": None,
        "amount_minor": "100",
        "currency": "EUR",
        "debtor_account": "debtor",
        "creditor_account": "creditor",
        "payload": "{}",
        "payload_salt": "\\x" + "00" * 16,
        "payload_hash": HASH,
        "attestation_id": ATTESTATION,
        "policy_version_id": "instructions",
        "state": "RECEIVED",
        "reason": None,
        "version": "1",
        "created_at": "2020-01-01Z",
        "updated_at": "2020-01-01Z",
        "completed_at": None,
        "db_user": "forger",
        "xact_id": "1",
    }
    assert changed.keys() <= whole.keys()
    return quoted(whole | changed)


def transition(
    instruction_id: str, version: int, from_state: str | None, to_state: str, **changed: str | None
) -> Row:
    """A whole row of history."""
    whole: dict[str, str | None] = {
        "instruction_id": instruction_id,
        "version": str(version),
        "participant_id": "p",
        "from_state": from_state,
        "to_state": to_state,
        "reason": "forged" if to_state == "FAILED" else None,
        "occurred_at": "2020-01-01Z",
        "db_user": "forger",
        "xact_id": "1",
    }
    assert changed.keys() <= whole.keys()
    return quoted(whole | changed)


HASHED = ("constraints/ck_instructions_payload_hash",)
CONTENT: dict[str, tuple[str, tuple[str, ...]]] = {
    "id": (f"'{NEW}'", (HISTORY_KEY,)),
    "participant_id": ("'q'", (HISTORY_KEY,)),
    "idempotency_key": ("'changed'", ()),
    "instruction_type": ("'changed'", ()),
    "end_to_end_id": ("'changed'", ()),
    "uetr": (f"'{NEW}'", ()),
    "value_date": ("'2020-01-01'", ()),
    "amount_minor": ("amount_minor + 1", ()),
    "currency": ("'USD'", ()),
    "debtor_account": ("'changed'", ()),
    "creditor_account": ("'changed'", ()),
    "payload": ("'{\"a\": 1}'", HASHED),
    "payload_salt": ("uuid_send(gen_random_uuid())", HASHED),
    "payload_hash": ("repeat('0', 64)", HASHED),
    "attestation_id": (f"'{NOWHERE}'", (ATTESTED_KEY,)),
    "policy_version_id": ("'changed'", (ATTESTED_KEY,)),
    "created_at": ("created_at - interval '1 day'", ()),
    "db_user": ("'changed'", ()),
    "xact_id": ("xact_id + 1", ()),
}
"""A value for each column that never changes, and what else refuses it."""


def changed(id: str, change: str) -> str:
    return update(INSTRUCTIONS, change, f"id = '{id}'")


def refused(number: str, column: str | None, detail: dict[str, object], *behind: str) -> Attack:
    return Attack(
        *("", f"INV-INS-{number}", "P7401", INSTRUCTIONS, detail, (GUARD, *behind)), column=column
    )


def native(invariant: str, sqlstate: str, table: str, path: str, *behind: str) -> Attack:
    """Refused by a constraint; replica mode disables the foreign keys."""
    return Attack(
        *("", invariant, sqlstate, table, None, (path, *behind)),
        constraint=path.partition("/")[2],
        replica=sqlstate != "23503",
    )


def orders() -> Iterator[Attack]:
    for before, id in IDS.items():
        for after in IDS:
            if before != after and (before, after) not in LEGAL:
                yield refused(
                    "002" if before in FINAL else "001",
                    "state",
                    {"id": id, "from": before, "to": after},
                    *([GUARD_END] if after in FINAL else []),
                ).by(f"{after} after {before}", changed(id, becomes(after)))
    skip = refused("001", "state", {"id": RECEIVED, "from": "RECEIVED", "to": "EXECUTING"})
    yield from skip.each(
        updates(
            *("EXECUTING after RECEIVED", INSTRUCTIONS, becomes("EXECUTING"), f"id = '{RECEIVED}'"),
            *(instruction(id=RECEIVED), "id"),
        )
    )
    for state in ("PAID", "", "authorized", "AUTHORIZED "):
        detail: dict[str, object] = {"id": RECEIVED, "from": "RECEIVED", "to": state}
        yield refused("001", "state", detail, "constraints/ck_instructions_state").by(
            f"the state {state!r}", changed(RECEIVED, becomes(state))
        )

    entered: dict[str, object] = {"id": NEW, "participant_id": "p", "idempotency_key": "new"}
    ended = {"completed_at": "2020-01-01Z"}
    unknown, below = "constraints/ck_instructions_state", "constraints/ck_instructions_version"
    for state, version, values, behind in (
        ("EXECUTING", 1, {}, ()),
        ("COMPLETED", 1, ended, ()),
        ("FAILED", 1, ended | {"reason": "forged"}, ()),
        ("PAID", 1, {}, (unknown,)),
        ("RECEIVED", 2, {}, ()),
        ("RECEIVED", 0, {}, (below,)),
        ("RECEIVED", -1, {}, (below,)),
    ):
        detail = entered | {"state": state, "version": version}
        yield refused("001", "state", detail, HISTORY_INSERT, *behind).by(
            f"a new instruction with state {state} and version {version}",
            insert(INSTRUCTIONS, instruction(state=state, version=str(version), **values)),
        )
    whole = instruction(state="AUTHORIZED")
    detail = entered | {"state": "AUTHORIZED", "version": 1}
    yield from refused("001", "state", detail, HISTORY_INSERT).each(
        inserts("a new instruction with state AUTHORIZED", INSTRUCTIONS, whole)
        | {"the same by COPY": copy(INSTRUCTIONS, whole)}
    )


def stays() -> Iterator[Attack]:
    def content(state: str, to: str) -> dict[str, object]:
        return {"id": IDS[state], "from": state, "to": to}

    for column, (value, behind) in CONTENT.items():
        yield refused("002", None, content("RECEIVED", "RECEIVED"), *behind).by(
            f"another {column}", changed(RECEIVED, f"{column} = {value}")
        )
    amount = "amount_minor = 101"
    yield refused("002", None, content("RECEIVED", "AUTHORIZED")).by(
        "another amount with the next state", changed(RECEIVED, f"{amount}, state = 'AUTHORIZED'")
    )
    for state in FINAL:
        yield refused("002", None, content(state, state)).by(
            f"another amount when {state}", changed(IDS[state], amount)
        )
    next_version = "version = version + 1"
    below = "constraints/ck_instructions_version"
    for state, change, behind in (
        ("RECEIVED", next_version, (HISTORY_UPDATE,)),
        ("RECEIVED", "version = version - 1", (HISTORY_UPDATE, below)),
        ("RECEIVED", "reason = 'forged'", ("constraints/ck_instructions_reason",)),
        ("RECEIVED", "updated_at = clock_timestamp()", ()),
        ("RECEIVED", "completed_at = clock_timestamp()", ("constraints/ck_instructions_times",)),
        ("FAILED", "reason = 'forged'", ()),
        ("FAILED", "completed_at = '2020-01-01Z'", ()),
        ("FAILED", "updated_at = '2020-01-01Z'", ()),
        ("COMPLETED", "completed_at = '2020-01-01Z'", ()),
        ("COMPLETED", next_version, (HISTORY_UPDATE,)),
    ):
        yield refused("002", "version", content(state, state), *behind).by(
            f"{change} alone when {state}", changed(IDS[state], change)
        )

    new: dict[str, object] = {"id": NEW, "participant_id": "p", "idempotency_key": "new"}
    future = refused("002", "created_at", new | {"created_at": ...})
    yield future.by(
        "a created_at in the future", insert(INSTRUCTIONS, instruction(created_at=f"({LATER})"))
    )
    for moment in ("infinity", "-infinity"):
        yield future.by(
            f"a created_at of {moment}",
            insert(INSTRUCTIONS, instruction(created_at=moment)),
            detail=new | {"created_at": moment},
            without=(GUARD, "constraints/ck_instructions_times"),
        )

    no_delete = ("triggers/instructions__no_delete", HISTORY_KEY)
    for state, id in IDS.items():
        attack = Attack(
            *("", "INV-INS-002", "P0001", INSTRUCTIONS, {"id": id, "state": state}, no_delete)
        )
        where = f"id = '{id}'"
        if state == "RECEIVED":
            yield from attack.each(deletes(INSTRUCTIONS, where))
        else:
            yield attack.by(
                f"removal when {state}", f"DELETE FROM orchestration.{INSTRUCTIONS} WHERE {where}"
            )
    referring = (
        *(INSTRUCTIONS, HISTORY, "execution_attempts", "transaction_attempts"),
        "payment_outbox_pending",
    )
    gone = Attack(
        *("", "INV-INS-002", "P0001", INSTRUCTIONS, {}),
        tuple(f"triggers/{table}__no_truncate" for table in referring),
    )
    yield gone.by("removal of all", f"TRUNCATE orchestration.{INSTRUCTIONS} CASCADE")
    yield from gone.each(truncates(*referring))


def keys() -> Iterator[Attack]:
    name = "constraints/uq_instructions_participant_id_idempotency_key"
    twice = native("INV-INS-003", "23505", INSTRUCTIONS, name)
    for state, id in IDS.items():
        yield twice.by(
            f"the key of one that is {state}", insert(INSTRUCTIONS, instruction(idempotency_key=id))
        )
    yield twice.by("a key twice", insert(INSTRUCTIONS, instruction(), instruction(id=NOWHERE)))
    yield twice.by(
        "the key of one that is FAILED by INSERT ON CONFLICT (id)",
        insert(INSTRUCTIONS, instruction(idempotency_key=FAILED)) + " ON CONFLICT (id) DO NOTHING",
    )


def history() -> Iterator[Attack]:
    guard = "triggers/status_history__guard"
    for name, row, behind in (
        ("the next version", transition(RECEIVED, 2, "RECEIVED", "AUTHORIZED"), ()),
        ("a version beyond", transition(RECEIVED, 9, "RECEIVED", "FAILED"), ()),
        ("the current state, a version beyond", transition(FAILED, 4, "RECEIVED", "FAILED"), ()),
        ("a version before", transition(AUTHORIZED, 0, "RECEIVED", "AUTHORIZED"), ()),
        ("another state", transition(AUTHORIZED, 3, "EXECUTING", "COMPLETED"), ()),
        (
            "another participant",
            transition(AUTHORIZED, 3, "AUTHORIZED", "EXECUTING", participant_id="q"),
            (HISTORY_KEY,),
        ),
        ("no transition", transition(RECEIVED, 2, "RECEIVED", "RECEIVED"), (TRANSITION,)),
    ):
        detail = {key: row[key].strip("'") for key in ("instruction_id", "to_state")}
        of_row = Attack(
            *("", "INV-INS-004", "P0001", HISTORY),
            detail | {"version": int(row["version"].strip("'"))},
            (guard, *behind),
            column="version",
        )
        if name == "the next version":
            yield from of_row.each(
                inserts(f"history of {name}", HISTORY, row)
                | {f"history of {name} by COPY": copy(HISTORY, row)}
            )
        else:
            yield of_row.by(f"history of {name}", insert(HISTORY, row))

    again = native("INV-INS-004", "23505", HISTORY, "constraints/pk_status_history")
    yield again.by(
        "history a second time",
        insert(HISTORY, transition(AUTHORIZED, 2, "RECEIVED", "AUTHORIZED")),
    )
    yield again.by(
        "history of a past version", insert(HISTORY, transition(AUTHORIZED, 1, None, "RECEIVED"))
    )
    # These two triggers sleep in replica mode, where rows arrive with their history.
    yield again.by(
        "a transition with a history by hand",
        *moves(RECEIVED, "AUTHORIZED"),
        insert(HISTORY, transition(RECEIVED, 2, "RECEIVED", "AUTHORIZED")),
        without=(HISTORY_UPDATE,),
        replica=False,
    )
    yield again.by(
        "an instruction with a history by hand",
        insert(INSTRUCTIONS, instruction()),
        insert(HISTORY, transition(NEW, 1, None, "RECEIVED")),
        without=(HISTORY_INSERT,),
        replica=False,
    )
    for from_state in (None, "AUTHORIZED", "EXECUTING", "COMPLETED", "PAID"):
        yield native("INV-INS-004", "23514", HISTORY, TRANSITION, HISTORY_UPDATE).by(
            f"AUTHORIZED from {from_state}",
            *moves(RECEIVED, "AUTHORIZED"),
            insert(HISTORY, transition(RECEIVED, 2, from_state, "AUTHORIZED")),
        )
    yield native("INV-INS-004", "23503", HISTORY, HISTORY_KEY).by(
        "history of no instruction", insert(HISTORY, transition(NOWHERE, 1, None, "RECEIVED"))
    )

    append_only = "triggers/status_history__append_only"
    kept = Attack(
        *("", "INV-APP-001", "P0001", HISTORY, {"instruction_id": AUTHORIZED, "version": 2}),
        (append_only,),
    )
    where = f"(instruction_id, version) = ('{AUTHORIZED}', 2)"
    for column, value, *behind in (
        ("instruction_id", f"'{RECEIVED}'"),
        ("version", "7"),
        ("participant_id", "'q'", HISTORY_KEY),
        ("from_state", "'EXECUTING'", TRANSITION),
        ("to_state", "'EXECUTING'", TRANSITION),
        ("reason", "'forged'", "constraints/ck_status_history_reason"),
        ("occurred_at", "'2020-01-01Z'"),
        ("xact_id", "1"),
        ("xact_id", "xact_id"),
    ):
        yield from kept.each(
            changes(HISTORY, where, {column: value}), without=(append_only, *behind)
        )
    yield from kept.each(
        updates(
            *("another db_user", HISTORY, "db_user = 'forged'", where),
            *(transition(AUTHORIZED, 2, "RECEIVED", "AUTHORIZED"), "instruction_id, version"),
        )
    )
    yield from kept.each(deletes(HISTORY, where))
    yield from kept.each(
        truncates(HISTORY), detail={}, without=("triggers/status_history__no_truncate",)
    )


def policies() -> Iterator[Attack]:
    unknown = {"id": "nowhere", "participant_id": "p", "idempotency_key": "new"}
    yield Attack(
        *("an unknown policy version", "INV-ATT-008", "P7105", "policy_versions", unknown),
        (GUARD, ATTESTED_KEY),
        column="id",
        statements=(insert(INSTRUCTIONS, instruction(policy_version_id="nowhere")),),
    )
    another = insert(INSTRUCTIONS, instruction(policy_version_id="another"))
    key = native("INV-INS-011", "23503", INSTRUCTIONS, ATTESTED_KEY)
    yield key.by("another policy version than the attestation's", another)
    yield key.by("any policy version", another, without=(ATTESTED,))


ITEM = (
    "jsonb_build_object('instruction_id', '{0}', 'participant_id', 'p',"
    " 'idempotency_key', '{0}', 'rail_type', 'SEPA', 'payload', jsonb_build_object())"
)
DISPATCH = (
    "SELECT FROM orchestration.complete_outbox_attempt(p_completions => (SELECT"
    " jsonb_agg(jsonb_build_object('outbox_id', c.outbox_id, 'lease_token', c.lease_token,"
    " 'worker_id', 'w', 'state', 'DISPATCHED')) FROM orchestration.claim_outbox_batch("
    "p_worker_id => 'w', p_batch_size => 1, p_lease => '1 minute') c))"
)


def dispatch(id: str) -> tuple[str, str]:
    """An item of the instruction, enqueued and dispatched."""
    return (
        "SELECT FROM orchestration.enqueue_payment_outbox("
        f"p_items => jsonb_build_array({ITEM.format(id)}))",
        DISPATCH,
    )


INSTRUCTION = Noun(
    (*orders(), *stays(), *keys(), *history(), *policies()),
    {
        # An instruction in each state, one that can be COMPLETED, and one of another participant.
        "": (
            rotate("instructions"),
            attest(OTHER),
            *authorize(
                OTHER,
                "instructions",
                {"p": (AUTHORIZED, EXECUTING, COMPLETED, FAILED, SENT), "q": (OF_Q,)},
            ),
            attest(ATTESTATION, "world"),
            insert(INSTRUCTIONS, instruction(id=RECEIVED, idempotency_key=RECEIVED, db_user=None)),
            *moves(FAILED, "FAILED"),
            *moves(EXECUTING, "EXECUTING"),
            *moves(COMPLETED, "EXECUTING"),
            *dispatch(COMPLETED),
            *moves(SENT, "EXECUTING"),
            *dispatch(SENT),
            *moves(COMPLETED, "COMPLETED"),
            rotate("another"),
        )
    },
)
