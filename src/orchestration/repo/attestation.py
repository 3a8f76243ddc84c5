"""Ingress attestations: append to a caller's chain, record its events, verify it (INV-ATT)."""

from collections.abc import Iterable
from typing import Final
from uuid import UUID

from pydantic import TypeAdapter
from sqlalchemy import text

from orchestration.records import (
    AttestationEventRecord,
    AttestationRecord,
    AttestationStatus,
    ChainReport,
    NewAttestation,
)
from orchestration.repo.arguments import ID, KEY, argument, dump_inputs, instance, instances
from orchestration.repo.base import Repository, one
from orchestration.vocabulary import AttestationEvent, TerminalStatus

APPEND: Final = text(
    """
    SELECT *
    FROM orchestration.append_attestations(p_attestations => CAST(:attestations AS jsonb))
    """
)
RECORD_EVENT: Final = text(
    """
    SELECT *
    FROM orchestration.record_attestation_event(
      p_attestation_id => :attestation_id,
      p_event => :event,
      p_terminal_status => :terminal_status
    )
    """
)
STATUS: Final = text(
    "SELECT * FROM orchestration.ingress_attestation_status WHERE attestation_id = :id"
)
VERIFY: Final = text(
    "SELECT * FROM orchestration.verify_attestation_chain(p_caller_identity => :caller_identity)"
)

NEWS: Final = TypeAdapter(list[NewAttestation])
TERMINAL_STATUS: Final[TypeAdapter[TerminalStatus]] = TypeAdapter(TerminalStatus)


class AttestationRepository(Repository):
    """The chains of attestations on the caller's Session. Appending requires `symphony_ingest`,
    recording events `symphony_executor`."""

    def append(self, new: NewAttestation) -> AttestationRecord:
        """Attest one request. The rules and errors are those of `append_many`."""
        return self.append_many([instance("new", NewAttestation, new)])[0]

    def append_many(self, news: Iterable[NewAttestation]) -> list[AttestationRecord]:
        """Attest up to 10,000 requests, all or none, in one round trip. The records are in input
        order.

        If a key was attested before with the same payload_hash, the first record is returned, even
        if its policy or credentials are no longer valid. The transaction holds the policy and
        revocation gates until COMMIT.

        Raises AttestationKeyConflict (P7303, INV-ATT-007), KillSwitchEngaged (P7501, INV-KIL-001),
        PolicyNotAccepted (P7105, INV-ATT-008), CredentialRevoked (P7202, INV-ATT-009),
        InvalidParameterValue (22023, INV-API-001) for more than 10,000, SerializationFailure
        (40001) if the snapshot is older than a change of policy or revocations.
        """
        attestations = dump_inputs("news", NEWS, instances("news", NewAttestation, news))
        rows = self._rows(APPEND, {"attestations": attestations})
        return [AttestationRecord.from_row(row) for row in rows]

    def start_execution(self, id: UUID) -> AttestationEventRecord:
        """Record that the attested execution has started. A repetition returns the first record.

        Raises NotFound (P0002, INV-API-002).
        """
        return self._record_event(id, AttestationEvent.EXECUTION_STARTED, None)

    def complete_execution(
        self, id: UUID, terminal_status: TerminalStatus | str
    ) -> AttestationEventRecord:
        """Record how the attested execution ended: SUCCESS, FAILED or REPAIRED. A repetition with
        the same status returns the first record.

        Raises NotFound (P0002, INV-API-002), InvalidAttestationState (P7301) if the execution has
        not started (INV-ATT-002) or is recorded with another status (INV-ATT-010).
        """
        return self._record_event(
            id,
            AttestationEvent.EXECUTION_COMPLETED,
            argument("terminal_status", TERMINAL_STATUS, terminal_status),
        )

    def status(self, id: UUID) -> AttestationStatus | None:
        """Return the attestation together with its events, or None."""
        row = self._row(STATUS, {"id": argument("id", ID, id)})
        return AttestationStatus.from_row(row) if row else None

    def verify_chain(self, caller_identity: str) -> ChainReport:
        """Recompute a caller's whole chain. Requires `symphony_auditor` or `symphony_control`.

        An unknown caller has an empty chain, which is `ok`.
        """
        caller = argument("caller_identity", KEY, caller_identity)
        return ChainReport.from_row(one(self._row(VERIFY, {"caller_identity": caller})))

    def _record_event(
        self, id: UUID, event: AttestationEvent, terminal_status: TerminalStatus | None
    ) -> AttestationEventRecord:
        row = self._row(
            RECORD_EVENT,
            {
                "attestation_id": argument("id", ID, id),
                "event": event,
                "terminal_status": terminal_status,
            },
        )
        return AttestationEventRecord.from_row(one(row))
