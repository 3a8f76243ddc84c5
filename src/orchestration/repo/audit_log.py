"""The audit log: read it and verify it (INV-AUD)."""

from typing import Final

from sqlalchemy import text

from orchestration.records import AuditLogRecord, AuditLogReport
from orchestration.repo.arguments import COUNT, argument
from orchestration.repo.base import Repository, one

ENTRIES: Final = text(
    """
    SELECT *
    FROM orchestration.audit_log
    WHERE chain_seq > :since
    ORDER BY chain_seq
    """
)
VERIFY: Final = text("SELECT * FROM orchestration.verify_audit_log()")


class AuditLogRepository(Repository):
    """The log of the acts of governance, which the database writes. Reading it requires
    `symphony_auditor` or `symphony_control`."""

    def entries(self, since: int | None = None) -> list[AuditLogRecord]:
        """Return the entries after `since` (a `chain_seq`; None for all), in order.

        Entries commit in the order of `chain_seq`. So pass the last one that was read as `since`:
        no late commit is missed.
        """
        after = 0 if since is None else argument("since", COUNT, since)
        return [AuditLogRecord.from_row(row) for row in self._rows(ENTRIES, {"since": after})]

    def verify_chain(self) -> AuditLogReport:
        """Recompute the whole chain and compare it with the tables. The report names the first
        entry that was changed or removed, an entry without an act, or an act without an entry."""
        return AuditLogReport.from_row(one(self._row(VERIFY)))
