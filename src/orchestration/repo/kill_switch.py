"""Kill switches: stop what is gated, and let it go on (INV-KIL)."""

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
    """The kill switches; changing them needs `symphony_control`.

    `scope`: GLOBAL (all that is gated), INGEST (attesting, receiving, enqueuing), EXECUTION
    (authorizing, starting), DISPATCH (claiming); PARTICIPANT and RAIL name a `target`.
    docs/kill-switches.md tells what each stops, and what none does.
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
        """Engage a switch: once committed, nothing gated that was in flight commits (INV-KIL-002).

        It waits for the gated transactions in flight, whatever the session's lock_timeout is. New
        gated writes wait behind it. The server ends a gated transaction that has been idle for
        10 s. A `statement_timeout` shorter than that can still end the call.

        With a `key` (1 to 1,000 octets) the act can be repeated: the same login with the same key
        and the same arguments gets the recorded event, `replayed`. Without one, each call adds an
        event.

        Raises CheckViolation (23514) for a target that the scope has not, or has; UniqueViolation
        (23505, INV-KIL-003) if another act, or another login, used the key.
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

        `key`: as for `engage`. A repeated release gets the recorded event, whatever the switch's
        state is now.

        Raises NotFound (P0002, INV-API-002) if it is not engaged; UniqueViolation (23505,
        INV-KIL-003) if another act, or another login, used the key; LockNotAvailable (55P03) if
        the gate was not free within 2 s: `detail["holders"]` names who holds it.
        """
        return self._change(RELEASE, scope, target, reason, "released_by", released_by, key)

    def state(self) -> list[KillSwitchState]:
        """The last event of every scope and target, engaged or released."""
        return [KillSwitchState.from_row(row) for row in self._rows(STATE)]

    def gate_holders(self) -> list[GateHolder]:
        """The transactions that hold or await a gate, holders first per gate.

        Needs `symphony_control`, `symphony_readonly` or `symphony_auditor`.
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
