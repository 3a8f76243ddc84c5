"""The tables as SQLAlchemy declarative models, which match the migrations exactly.

Use them for reading, also in joins with your own models. Write through the repositories: a runtime
role has no INSERT, UPDATE or DELETE on any table.
"""

from orchestration.models.attempt_log import ExecutionAttempt, TransactionAttempt
from orchestration.models.attestation import (
    IngressAttestation,
    IngressAttestationEvent,
    IngressAttestationHead,
)
from orchestration.models.audit_log import AuditLog, AuditLogHead
from orchestration.models.base import Base
from orchestration.models.instruction import Instruction, StatusHistory
from orchestration.models.kill_switch import KillSwitch, KillSwitchGate
from orchestration.models.late_result import (
    PaymentOutboxIntervention,
    PaymentOutboxLateResult,
)
from orchestration.models.outbox import (
    ParticipantOutboxSequence,
    PaymentOutboxAttempt,
    PaymentOutboxItem,
    PaymentOutboxPending,
)
from orchestration.models.policy_version import PolicyGate, PolicyVersion
from orchestration.models.revocation import (
    Revocation,
    RevocationGate,
    RevokedClientCert,
    RevokedToken,
)
from orchestration.models.schema_revision import SchemaRevision

__all__ = [
    "AuditLog",
    "AuditLogHead",
    "Base",
    "ExecutionAttempt",
    "IngressAttestation",
    "IngressAttestationEvent",
    "IngressAttestationHead",
    "Instruction",
    "KillSwitch",
    "KillSwitchGate",
    "ParticipantOutboxSequence",
    "PaymentOutboxAttempt",
    "PaymentOutboxIntervention",
    "PaymentOutboxItem",
    "PaymentOutboxLateResult",
    "PaymentOutboxPending",
    "PolicyGate",
    "PolicyVersion",
    "Revocation",
    "RevocationGate",
    "RevokedClientCert",
    "RevokedToken",
    "SchemaRevision",
    "StatusHistory",
    "TransactionAttempt",
]
