"""Policy versions: read, rotate, retire (INV-POL)."""

from datetime import timedelta
from typing import Final

from sqlalchemy import func, select, text

from orchestration.models import PolicyVersion
from orchestration.records import NewPolicyVersion, PolicyVersionRecord
from orchestration.repo.arguments import (
    DURATION,
    KEY,
    KEY_OR_NONE,
    argument,
    instance,
    microseconds,
)
from orchestration.repo.base import Repository, as_text, one
from orchestration.vocabulary import PolicyStatus

ROTATE: Final = text(
    """
    SELECT *
    FROM orchestration.rotate_policy_version(
      p_id => :id,
      p_description => :description,
      p_checksum => :checksum,
      p_grace => CAST(:grace AS interval),
      p_created_by => :created_by,
      p_expected_active => :expected_active
    )
    """
)
RETIRE: Final = text("SELECT * FROM orchestration.retire_policy_version(p_id => :id)")
REQUIRE: Final = text("SELECT orchestration.require_policy_accepted(p_policy_version_id => :id)")

VERSIONS: Final = PolicyVersion.__table__


class PolicyVersionRepository(Repository):
    """The versions of the policy; changing them needs `symphony_control`."""

    def active(self) -> PolicyVersionRecord | None:
        """The ACTIVE version; None before the first rotation."""
        row = self._row(select(VERSIONS).where(VERSIONS.c.status == as_text(PolicyStatus.ACTIVE)))
        return PolicyVersionRecord.from_row(row) if row else None

    def accepted(self) -> list[PolicyVersionRecord]:
        """The versions a token may be signed under now, the ACTIVE one first: at most two."""
        rows = self._rows(
            select(VERSIONS)
            .where(
                (VERSIONS.c.status == as_text(PolicyStatus.ACTIVE))
                | (
                    (VERSIONS.c.status == as_text(PolicyStatus.GRACE))
                    & (VERSIONS.c.grace_expires_at > func.clock_timestamp())
                )
            )
            .order_by(VERSIONS.c.activated_at.desc())
        )
        return [PolicyVersionRecord.from_row(row) for row in rows]

    def get(self, id: str) -> PolicyVersionRecord | None:
        """The version of that id, or None."""
        row = self._row(select(VERSIONS).where(VERSIONS.c.id == as_text(argument("id", KEY, id))))
        return PolicyVersionRecord.from_row(row) if row else None

    def rotate(
        self, new: NewPolicyVersion, *, grace: timedelta, expected_active: str | None = None
    ) -> PolicyVersionRecord:
        """Make `new` ACTIVE; the ACTIVE version enters GRACE for `grace`, one in GRACE is retired.

        Writers judged under the old state have committed before this returns, or never do. If the
        same login repeats the rotation (same id, same checksum), it gets the recorded version as it
        is now, `replayed`, and nothing changes; its grace and `expected_active` are not compared.

        Raises InvalidParameterValue (22023, INV-API-001) for a negative grace, ActivePolicyConflict
        (P7104, INV-POL-005) where `expected_active` is not the ACTIVE one, UniqueViolation (23505)
        if the id exists with another checksum or from another login, LockNotAvailable (55P03) if
        the gate was not free within 2 s: `detail["holders"]` names who holds it.
        """
        instance("new", NewPolicyVersion, new)
        row = self._row(
            ROTATE,
            {
                "id": new.id,
                "description": new.description,
                "checksum": new.checksum,
                "grace": microseconds(argument("grace", DURATION, grace)),
                "created_by": new.created_by,
                "expected_active": argument("expected_active", KEY_OR_NONE, expected_active),
            },
        )
        return PolicyVersionRecord.from_row(one(row))

    def retire(self, id: str) -> PolicyVersionRecord:
        """Retire the version in GRACE before its time.

        If the login that retired it by this method repeats the call, it gets the version,
        `replayed`.

        Raises LastActivePolicy (P7103, INV-POL-007) for the ACTIVE one, InvalidPolicyTransition
        (P7101, INV-POL-002) for one that a rotation or another login retired, PolicyNotAccepted
        (P7105, INV-ATT-008) for an unknown one.
        """
        row = self._row(RETIRE, {"id": argument("id", KEY, id)})
        return PolicyVersionRecord.from_row(one(row))

    def require_accepted(self, id: str) -> None:
        """Hold the policy gate until COMMIT, and be sure that `id` is accepted now.

        Raises PolicyNotAccepted (P7105, INV-ATT-008).
        """
        self._rows(REQUIRE, {"id": argument("id", KEY, id)})
