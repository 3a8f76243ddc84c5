"""Revocations of client certificates and tokens (INV-REV)."""

from datetime import datetime
from typing import Final

from pydantic import TypeAdapter
from sqlalchemy import TextClause, text

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
from orchestration.repo.base import Repository, one
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
SINCE: Final = text(
    """
    SELECT s.*
    FROM orchestration.revocations_since(p_watermark => CAST(:watermark AS pg_snapshot)) s
    """
)
CLIENT_CERT_IN_FORCE: Final = text(
    """
    SELECT 1
    FROM orchestration.revoked_client_certs_in_force
    WHERE cert_fingerprint_sha256 = CAST(:hash AS text)
    LIMIT 1
    """
)
TOKEN_IN_FORCE: Final = text(
    """
    SELECT 1
    FROM orchestration.revoked_tokens_in_force
    WHERE token_hash = CAST(:hash AS text)
    LIMIT 1
    """
)
CLIENT_CERT_AT: Final = text(
    """
    SELECT 1
    FROM orchestration.revoked_client_certs
    WHERE cert_fingerprint_sha256 = CAST(:hash AS text)
      AND revoked_at <= :at
      AND (expires_at IS NULL OR :at < expires_at)
    LIMIT 1
    """
)
TOKEN_AT: Final = text(
    """
    SELECT 1
    FROM orchestration.revoked_tokens
    WHERE token_hash = CAST(:hash AS text)
      AND revoked_at <= :at
      AND (expires_at IS NULL OR :at < expires_at)
    LIMIT 1
    """
)

HASH: Final[TypeAdapter[str]] = TypeAdapter(Sha256Hex)
HASH_OR_NONE: Final[TypeAdapter[str | None]] = TypeAdapter(Sha256Hex | None)
REASON: Final[TypeAdapter[CRLReason]] = TypeAdapter(CRLReason)
WHEN: Final[TypeAdapter[datetime | None]] = TypeAdapter(AwareTime | None)


class RevocationRepository(Repository):
    """Revocations on the caller's Session. Revoking requires `symphony_control`. The methods take
    hashes, never credentials."""

    def revoke_client_cert(
        self,
        *,
        cert_fingerprint_sha256: str,
        reason_code: CRLReason | str,
        revoked_by: str,
        expires_at: datetime | None = None,
        revoked_at: datetime | None = None,
    ) -> RevocationRecord:
        """Revoke a client certificate, given the SHA-256 of its DER encoding in lowercase hex.

        An attestation that was checked before has committed when this returns, or never commits. If
        a revocation is in force that lasts as long as this one, it is returned. Otherwise another
        one is added, for example if a hold has expired or becomes permanent (INV-REV-006). Only
        `expires_at` ends a revocation (INV-REV-007). `revoked_at`: for an import, a time in the
        past from which the credential counts as revoked. The default is the database's clock.

        Raises pydantic.ValidationError for a malformed value, InvalidRevocation (P7201) for a
        `revoked_at` in the future, CheckViolation (23514, INV-REV-002) if it expires before it
        is revoked, LockNotAvailable (55P03) if a writer holds the gate for over 2 s.
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
        """Revoke a token, given its SHA-256 in lowercase hex. The rules and errors are those of
        `revoke_client_cert`."""
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
        """Whether a revocation of the certificate is in force now, or was at the time `at`.

        A revocation in flight is not seen. Use `require_not_revoked` to exclude one.
        """
        return self._is_revoked(
            CLIENT_CERT_IN_FORCE,
            CLIENT_CERT_AT,
            "cert_fingerprint_sha256",
            cert_fingerprint_sha256,
            at,
        )

    def is_token_revoked(self, token_hash: str, at: datetime | None = None) -> bool:
        """Whether a revocation of the token is in force now, or was at the time `at`. See
        `is_client_cert_revoked`."""
        return self._is_revoked(TOKEN_IN_FORCE, TOKEN_AT, "token_hash", token_hash, at)

    def require_not_revoked(
        self,
        *,
        client_cert_fingerprint_sha256: str | None = None,
        token_hash: str | None = None,
    ) -> None:
        """Check that neither credential is revoked now, and hold the revocation gate until COMMIT.

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
        """Return the revocations since `watermark` (None for all), and the next watermark.

        No late commit is missed, even if the server crashes, but a revocation can be returned
        twice. After a restore, or a failover that may have lost transactions, start again with
        None.

        Raises InvalidTextRepresentation (22P02) if `watermark` is not the text of a snapshot,
        InvalidParameterValue (22023, INV-API-001) if it is ahead of the current snapshot, for
        example because it comes from another cluster.
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
        in_force: TextClause,
        in_force_at: TextClause,
        name: str,
        hash: str,
        at: datetime | None,
    ) -> bool:
        given = {"hash": argument(name, HASH, hash)}
        if at is None:
            return bool(self._rows(in_force, given))
        return bool(self._rows(in_force_at, given | {"at": argument("at", WHEN, at)}))
