"""The repositories: what a service calls, on its own SQLAlchemy Session.

A repository never commits. It works in the caller's transaction, returns frozen records and raises
the typed errors of `orchestration.errors`.
"""

from orchestration.repo.attempt_log import AttemptLogRepository
from orchestration.repo.attestation import AttestationRepository
from orchestration.repo.audit_log import AuditLogRepository
from orchestration.repo.instruction import InstructionRepository
from orchestration.repo.kill_switch import KillSwitchRepository
from orchestration.repo.outbox import OutboxRepository
from orchestration.repo.policy_version import PolicyVersionRepository
from orchestration.repo.revocation import RevocationRepository

__all__ = [
    "AttemptLogRepository",
    "AttestationRepository",
    "AuditLogRepository",
    "InstructionRepository",
    "KillSwitchRepository",
    "OutboxRepository",
    "PolicyVersionRepository",
    "RevocationRepository",
]
