"""Policy versions: read, rotate, retire (INV-POL)."""

from datetime import timedelta
from typing import Final

from sqlalchemy import func, select, text

from orchestration.models import PolicyVersion
from orchestration.records import NewPolicyVersion, PolicyVersionRecord, microseconds
from orchestration.repo.arguments import (
    DURATION,
    KEY,
    KEY_OR_NONE,
    argument,
    instance,
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
    """The policy versions on the caller's Session. Changing them requires `symphony_control`."""

    def active(self) -> PolicyVersionRecord | None:
        """Return the ACTIVE version, or None before the first rotation."""
        row = self._row(select(VERSIONS).where(VERSIONS.c.status == as_text(PolicyStatus.ACTIVE)))
        return PolicyVersionRecord.from_row(row) if row else None

    def accepted(self) -> list[PolicyVersionRecord]:
        """Return the versions that are accepted now: the ACTIVE one and, if any, that in GRACE."""
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
        """Return the version with this id, or None."""
        row = self._row(select(VERSIONS).where(VERSIONS.c.id == as_text(argument("id", KEY, id))))
        return PolicyVersionRecord.from_row(row) if row else None

    def rotate(
        self, new: NewPolicyVersion, *, grace: timedelta, expected_active: str | None = None
    ) -> PolicyVersionRecord:
        """Make `new` ACTIVE. The ACTIVE version enters GRACE for `grace`; the one in GRACE is
        retired.

        A writer that was checked under the old state has committed before this returns, or never
        commits. If the same login repeats the rotation (same id, same checksum), it gets the
        current state of the recorded version, `replayed`, and nothing changes; `grace` and
        `expected_active` are not compared.

        Raises InvalidParameterValue (22023, INV-API-001) for a negative grace, ActivePolicyConflict
        (P7104, INV-POL-005) if `expected_active` is not the ACTIVE one, UniqueViolation (23505) if
        the id exists with another checksum or from another login, LockNotAvailable (55P03) if the
        gate was not free within 2 s: `detail["holders"]` names its holders.
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
        """Retire the version in GRACE before its grace period ends.

        If the login that retired it by this method repeats the call, it gets the version,
        `replayed`.

        Raises LastActivePolicy (P7103, INV-POL-007) for the ACTIVE version, InvalidPolicyTransition
        (P7101, INV-POL-002) if a rotation or another login has retired the version,
        PolicyNotAccepted (P7105, INV-ATT-008) for an unknown version.
        """
        row = self._row(RETIRE, {"id": argument("id", KEY, id)})
        return PolicyVersionRecord.from_row(one(row))

    def require_accepted(self, id: str) -> None:
        """Check that `id` is accepted now, and hold the policy gate until COMMIT.

        Raises PolicyNotAccepted (P7105, INV-ATT-008).
        """
        self._rows(REQUIRE, {"id": argument("id", KEY, id)})
