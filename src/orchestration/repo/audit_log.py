"""The audit log: read it, and verify that it is whole (INV-AUD)."""

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
    """The acts of governance, written by the database itself; reading them needs
    `symphony_auditor` or `symphony_control`."""

    def entries(self, since: int | None = None) -> list[AuditLogRecord]:
        """The entries after `since` (a `chain_seq`, None: all), in their order.

        Entries commit in the order of `chain_seq`: the last one read is where to go on from, and no
        late commit is missed.
        """
        after = 0 if since is None else argument("since", COUNT, since)
        return [AuditLogRecord.from_row(row) for row in self._rows(ENTRIES, {"since": after})]

    def verify_chain(self) -> AuditLogReport:
        """Recompute the whole chain, and hold it against what stands in the tables: finds what was
        changed or removed, an entry that no act explains, and an act that no entry records."""
        return AuditLogReport.from_row(one(self._row(VERIFY)))
