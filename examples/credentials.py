"""Identifies a caller by an X.509 client certificate and by a signed token for each submission.

The caller signs its token (a JWT, ES256) with the key of its certificate. The ingress checks that
the certificate was issued by its authority, that the token is signed with the certificate's key,
and that the token contains the thumbprint of the certificate (RFC 8705) and the payload's hash.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

AUDIENCE = "payments-ingress"
LIFETIME = timedelta(minutes=5)


class NotAuthentic(Exception):
    """The certificate, the token or the payload is not authentic."""


@dataclass(frozen=True)
class Caller:
    """A debtor, with its key and certificate."""

    name: str
    key: EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def sign(self, payload: Mapping[str, Any], *, request_id: str, policy: str) -> "Request":
        """Sign a payload under a policy version, with a new token."""
        now = datetime.now(UTC)
        claims = {
            "iss": self.name,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + LIFETIME,
            "jti": request_id,
            "policy": policy,
            "payload_sha256": payload_hash(payload),
            "cnf": {"x5t#S256": _thumbprint(self.certificate)},
        }
        token = jwt.encode(claims, self.key, algorithm="ES256")
        return Request(self.certificate.public_bytes(Encoding.DER), token, payload)


@dataclass(frozen=True)
class Request:
    """A request to the ingress: the certificate of the TLS session, the token and the payload."""

    certificate_der: bytes
    token: str
    payload: Mapping[str, Any]


@dataclass(frozen=True)
class Verified:
    """A request that the ingress has verified. The hashes are SHA-256 in hex."""

    caller: str
    request_id: str
    policy: str
    payload: Mapping[str, Any]
    payload_hash: str
    cert_fingerprint: str
    token_hash: str
    signature_hash: str


class Authority:
    """The certificate authority that the ingress trusts."""

    def __init__(self, name: str) -> None:
        self._key = generate_private_key(SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = _key_usage(digital_signature=False, key_cert_sign=True)
        self.certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, SHA256())
        )

    def issue(self, name: str) -> Caller:
        """Issue a client certificate with this name for a new key."""
        key = generate_private_key(SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        host = hashlib.sha256(name.encode()).hexdigest()[:12]
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True, key_cert_sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(f"{host}.callers.example")]),
                critical=False,
            )
            .add_extension(authority, critical=False)
            .sign(self._key, SHA256())
        )
        return Caller(name, key, certificate)

    def verify(self, request: Request) -> Verified:
        """Raises NotAuthentic."""
        certificate = x509.load_der_x509_certificate(request.certificate_der)
        verifier = PolicyBuilder().store(Store([self.certificate])).build_client_verifier()
        key = certificate.public_key()
        try:
            verifier.verify(certificate, [])
            if not isinstance(key, EllipticCurvePublicKey):
                raise NotAuthentic("the certificate holds no EC key")
            caller = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
            claims = jwt.decode(
                request.token,
                key,
                algorithms=["ES256"],
                audience=AUDIENCE,
                issuer=str(caller),
                options={"require": ["iss", "aud", "iat", "exp", "jti", "policy", "cnf"]},
            )
        except (VerificationError, jwt.InvalidTokenError) as error:
            raise NotAuthentic(str(error)) from error
        hashed = payload_hash(request.payload)
        if claims.get("payload_sha256") != hashed:
            raise NotAuthentic("the token was signed for another payload")
        if claims["cnf"] != {"x5t#S256": _thumbprint(certificate)}:
            raise NotAuthentic("the token was signed for another certificate")
        signature = request.token.rpartition(".")[2]
        return Verified(
            caller=str(caller),
            request_id=claims["jti"],
            policy=claims["policy"],
            payload=request.payload,
            payload_hash=hashed,
            cert_fingerprint=fingerprint(certificate),
            token_hash=hashlib.sha256(request.token.encode()).hexdigest(),
            signature_hash=hashlib.sha256(_from_base64url(signature)).hexdigest(),
        )

    def _builder(self, subject: x509.Name, key: EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def payload_hash(payload: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the payload's canonical form."""
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of the certificate's DER encoding, in hex."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _thumbprint(certificate: x509.Certificate) -> str:
    digest = bytes.fromhex(fingerprint(certificate))
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _from_base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _key_usage(*, digital_signature: bool, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
