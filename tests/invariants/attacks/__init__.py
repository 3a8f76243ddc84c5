"""The attacks: what nobody can do to the database, with the SQL that tries it, as data."""

from collections.abc import Iterator

from tests.invariants.attacks.attempt_log import ATTEMPT_LOG
from tests.invariants.attacks.attestation import ATTESTATION
from tests.invariants.attacks.audit_log import AUDIT_LOG
from tests.invariants.attacks.base import Attack, Noun
from tests.invariants.attacks.instruction import INSTRUCTION
from tests.invariants.attacks.kill_switch import KILL_SWITCH
from tests.invariants.attacks.outbox import OUTBOX
from tests.invariants.attacks.policy_version import POLICY_VERSION
from tests.invariants.attacks.revocation import REVOCATION

NOUNS: dict[str, Noun] = {
    "policy_version": POLICY_VERSION,
    "revocation": REVOCATION,
    "attestation": ATTESTATION,
    "instruction": INSTRUCTION,
    "attempt_log": ATTEMPT_LOG,
    "outbox": OUTBOX,
    "kill_switch": KILL_SWITCH,
    "audit_log": AUDIT_LOG,
}


SLEEPING = {path for noun in NOUNS.values() for path in noun.sleeping}
"""What enforces a rule and refuses nothing."""


def every() -> Iterator[tuple[str, Attack]]:
    """Each attack, with the name of its noun."""
    for noun, listed in NOUNS.items():
        for attack in listed.attacks:
            yield noun, attack
