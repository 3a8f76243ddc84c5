"""Revocations of client certificates and tokens (INV-REV)."""

from datetime import datetime
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import TextClause, func, literal, or_, select, text
from sqlalchemy.orm import InstrumentedAttribute

from orchestration.models import Revocation, RevokedClientCert, RevokedToken
from orchestration.records import (
    AwareTime,
    RevocationRecord,
    RevocationsSince,
    Sha256Hex,
)
from orchestration.repo.arguments import (
    KEY,
    TEXT_OR_NONE,
    argument,
)
from orchestration.repo.base import Repository, as_text, one
from orchestration.vocabulary import CRLReason

REVOKE_CLIENT_CERT: Final = text(
    """
    SELECT 'CLIENT_CERT' AS credential, cert_fingerprint_sha256 AS hash, r.*
    FROM orchestration.revoke_client_cert(
      p_cert_fingerprint_sha256 => :hash,
      p_reason_code => :reason_code,
      p_revoked_by => :revoked_by,
      p_expires_at => :expires_at,
      p_revoked_at => :revoked_at
    ) r
    """
)
REVOKE_TOKEN: Final = text(
    """
    SELECT 'TOKEN' AS credential, token_hash AS hash, r.*
    FROM orchestration.revoke_token(
      p_token_hash => :hash,
      p_reason_code => :reason_code,
      p_revoked_by => :revoked_by,
      p_expires_at => :expires_at,
      p_revoked_at => :revoked_at
    ) r
    """
)
REQUIRE: Final = text(
    """
    SELECT orchestration.require_credential_not_revoked(
      p_client_cert_fingerprint_sha256 => :client_cert_fingerprint_sha256,
      p_token_hash => :token_hash
    )
    """
)
# One statement, so the rows and the next watermark are of one snapshot. A transaction that has
# written sees its own rows but is not in its snapshot's list: it gets a watermark from before
# everything that runs, and may be told some rows twice.
SINCE: Final = text(
    """
    WITH reading AS MATERIALIZED (
      SELECT CASE
        WHEN pg_current_xact_id_if_assigned() IS NULL THEN pg_current_snapshot()::text
        ELSE format('%1$s:%1$s:', pg_snapshot_xmin(pg_current_snapshot()))
      END AS watermark
    ), revocations AS (
      SELECT 'CLIENT_CERT' AS credential, cert_fingerprint_sha256 AS hash, revoked_at,
             recorded_at, expires_at, reason_code, revoked_by, db_user, xact_id
      FROM orchestration.revoked_client_certs
      UNION ALL
      SELECT 'TOKEN', token_hash, revoked_at,
             recorded_at, expires_at, reason_code, revoked_by, db_user, xact_id
      FROM orchestration.revoked_tokens
    )
    SELECT reading.watermark, revocations.*
    FROM reading
    LEFT JOIN revocations ON CAST(:watermark AS pg_snapshot) IS NULL
      OR xact_id >= CAST(CAST(pg_snapshot_xmin(CAST(:watermark AS pg_snapshot)) AS text) AS bigint)
        AND NOT pg_visible_in_snapshot(
          CAST(CAST(xact_id AS text) AS xid8), CAST(:watermark AS pg_snapshot))
    ORDER BY recorded_at, hash
    """
)

HASH: Final[TypeAdapter[str]] = TypeAdapter(Sha256Hex)
HASH_OR_NONE: Final[TypeAdapter[str | None]] = TypeAdapter(Sha256Hex | None)
REASON: Final[TypeAdapter[CRLReason]] = TypeAdapter(CRLReason)
WHEN: Final[TypeAdapter[datetime | None]] = TypeAdapter(AwareTime | None)


class RevocationRepository(Repository):
    """Revoked credentials; revoking needs `symphony_control`. Only hashes are ever given."""

    def revoke_client_cert(
        self,
        *,
        cert_fingerprint_sha256: str,
        reason_code: CRLReason | str,
        revoked_by: str,
        expires_at: datetime | None = None,
        revoked_at: datetime | None = None,
    ) -> RevocationRecord:
        """Revoke a client certificate, by the SHA-256 of its DER encoding in lowercase hex.

        Attestations that were judged before have committed when this returns, or never do. Revoking
        twice answers with the first record (INV-REV-006). `revoked_at`: a time in the past from
        which it counts (an import); the database's clock else.

        Raises pydantic.ValidationError for a malformed value, InvalidRevocation (P7201) for a
        `revoked_at` in the future, CheckViolation (23514, INV-REV-002) where it expires before it
        is revoked, LockNotAvailable (55P03) where a writer holds the gate for over 2 s.
        """
        return self._revoke(
            REVOKE_CLIENT_CERT,
            "cert_fingerprint_sha256",
            cert_fingerprint_sha256,
            reason_code,
            revoked_by,
            expires_at,
            revoked_at,
        )

    def revoke_token(
        self,
        *,
        token_hash: str,
        reason_code: CRLReason | str,
        revoked_by: str,
        expires_at: datetime | None = None,
        revoked_at: datetime | None = None,
    ) -> RevocationRecord:
        """Revoke a token, by its SHA-256 in lowercase hex; otherwise as `revoke_client_cert`."""
        return self._revoke(
            REVOKE_TOKEN,
            "token_hash",
            token_hash,
            reason_code,
            revoked_by,
            expires_at,
            revoked_at,
        )

    def is_client_cert_revoked(
        self, cert_fingerprint_sha256: str, at: datetime | None = None
    ) -> bool:
        """Whether the certificate is revoked at that time (now else); no promise about a revocation
        in flight: `require_not_revoked` gives one."""
        return self._is_revoked(
            RevokedClientCert,
            RevokedClientCert.cert_fingerprint_sha256,
            cert_fingerprint_sha256,
            at,
        )

    def is_token_revoked(self, token_hash: str, at: datetime | None = None) -> bool:
        """Whether the token is revoked at that time (now else); otherwise as
        `is_client_cert_revoked`."""
        return self._is_revoked(RevokedToken, RevokedToken.token_hash, token_hash, at)

    def require_not_revoked(
        self,
        *,
        client_cert_fingerprint_sha256: str | None = None,
        token_hash: str | None = None,
    ) -> None:
        """Hold the revocation gate until COMMIT, and be sure that neither is revoked now.

        Raises CredentialRevoked (P7202, INV-ATT-009).
        """
        self._rows(
            REQUIRE,
            {
                "client_cert_fingerprint_sha256": argument(
                    "client_cert_fingerprint_sha256", HASH_OR_NONE, client_cert_fingerprint_sha256
                ),
                "token_hash": argument("token_hash", HASH_OR_NONE, token_hash),
            },
        )

    def since(self, watermark: str | None) -> RevocationsSince:
        """What was revoked since `watermark` (None: all), and the next watermark.

        No late commit is missed; a revocation may be told twice.
        """
        rows = self._rows(SINCE, {"watermark": argument("watermark", TEXT_OR_NONE, watermark)})
        return RevocationsSince(
            revocations=tuple(RevocationRecord.from_row(row) for row in rows if row["hash"]),
            watermark=rows[0]["watermark"],
        )

    def _revoke(
        self,
        statement: TextClause,
        name: str,
        hash: str,
        reason_code: CRLReason | str,
        revoked_by: str,
        expires_at: datetime | None,
        revoked_at: datetime | None,
    ) -> RevocationRecord:
        row = self._row(
            statement,
            {
                "hash": argument(name, HASH, hash),
                "reason_code": argument("reason_code", REASON, reason_code).value,
                "revoked_by": argument("revoked_by", KEY, revoked_by),
                "expires_at": argument("expires_at", WHEN, expires_at),
                "revoked_at": argument("revoked_at", WHEN, revoked_at),
            },
        )
        return RevocationRecord.from_row(one(row))

    def _is_revoked(
        self,
        model: type[Revocation],
        column: InstrumentedAttribute[str],
        hash: str,
        at: datetime | None,
    ) -> bool:
        moment = func.clock_timestamp() if at is None else literal(argument("at", WHEN, at))
        rows = self._rows(
            select(column).where(
                column == as_text(argument(column.key, HASH, hash)),
                model.revoked_at <= moment,
                or_(model.expires_at.is_(None), model.expires_at > moment),
            )
        )
        return bool(rows)
