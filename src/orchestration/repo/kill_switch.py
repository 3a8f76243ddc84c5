"""Kill switches: engage and release them, and read their state (INV-KIL)."""

from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import TextClause, text

from orchestration.records import GateHolder, KillSwitchRecord, KillSwitchState
from orchestration.repo.arguments import KEY, KEY_OR_NONE, REASON, argument
from orchestration.repo.base import Repository, one
from orchestration.vocabulary import KillSwitchScope

ENGAGE: Final = text(
    """
    SELECT *
    FROM orchestration.engage_kill_switch(
      p_scope => :scope,
      p_reason => :reason,
      p_target => :target,
      p_engaged_by => :actor,
      p_key => :key
    )
    """
)
RELEASE: Final = text(
    """
    SELECT *
    FROM orchestration.release_kill_switch(
      p_scope => :scope,
      p_reason => :reason,
      p_target => :target,
      p_released_by => :actor,
      p_key => :key
    )
    """
)
STATE: Final = text("SELECT * FROM orchestration.kill_switch_state ORDER BY scope, target")

HOLDERS: Final = text("SELECT * FROM orchestration.gate_holders()")

SCOPE: Final[TypeAdapter[KillSwitchScope]] = TypeAdapter(KillSwitchScope)


class KillSwitchRepository(Repository):
    """The kill switches on the caller's Session. Changing them requires `symphony_control`.

    `scope`: GLOBAL (everything gated), INGEST (attesting, receiving, enqueuing), EXECUTION
    (authorizing, starting), DISPATCH (claiming). PARTICIPANT and RAIL require a `target`.
    docs/kill-switches.md lists what each scope blocks, and what no scope blocks.
    """

    def engage(
        self,
        *,
        scope: KillSwitchScope | str,
        target: str | None = None,
        reason: str,
        engaged_by: str,
        key: str | None = None,
    ) -> KillSwitchRecord:
        """Engage a switch. After its COMMIT no gated write in flight commits (INV-KIL-002).

        The call waits for the gated transactions in flight, whatever the session's lock_timeout is.
        New gated writes wait for the call. The server ends a gated transaction that has been idle
        for 10 s. A `statement_timeout` shorter than that can end the call.

        With a `key` (1 to 1,000 octets) the act can be repeated: if the same login repeats it with
        the same key and arguments, it gets the recorded event, `replayed`. Without a key, each call
        adds an event.

        Raises CheckViolation (23514) if a required `target` is missing or the scope has none;
        UniqueViolation (23505, INV-KIL-003) if another act or another login has used the key.
        """
        return self._change(ENGAGE, scope, target, reason, "engaged_by", engaged_by, key)

    def release(
        self,
        *,
        scope: KillSwitchScope | str,
        target: str | None = None,
        reason: str,
        released_by: str,
        key: str | None = None,
    ) -> KillSwitchRecord:
        """Release an engaged switch.

        `key`: see `engage`. A repeated release returns the recorded event, whatever the current
        state of the switch is.

        Raises NotFound (P0002, INV-API-002) if it is not engaged; UniqueViolation (23505,
        INV-KIL-003) if another act or another login has used the key; LockNotAvailable (55P03) if
        the gate was not free within 2 s: `detail["holders"]` names its holders.
        """
        return self._change(RELEASE, scope, target, reason, "released_by", released_by, key)

    def state(self) -> list[KillSwitchState]:
        """Return the last event of every scope and target, engaged or released."""
        return [KillSwitchState.from_row(row) for row in self._rows(STATE)]

    def gate_holders(self) -> list[GateHolder]:
        """Return the transactions that hold a gate or wait for one; per gate, the holders first.

        Requires `symphony_control`, `symphony_readonly` or `symphony_auditor`.
        """
        return [GateHolder.from_row(row) for row in self._rows(HOLDERS)]

    def _change(
        self,
        statement: TextClause,
        scope: KillSwitchScope | str,
        target: str | None,
        reason: str,
        by: str,
        actor: str,
        key: str | None,
    ) -> KillSwitchRecord:
        row = self._row(
            statement,
            {
                "scope": argument("scope", SCOPE, scope).value,
                "target": argument("target", KEY_OR_NONE, target),
                "reason": argument("reason", REASON, reason),
                "actor": argument(by, KEY, actor),
                "key": argument("key", KEY_OR_NONE, key),
            },
        )
        return KillSwitchRecord.from_row(one(row))
