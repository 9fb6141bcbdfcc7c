"""Certificates for tests: an authority, and what it signs."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files; `encrypted` is the key under a password."""

    name: x509.Name
    private: ec.EllipticCurvePrivateKey
    cert: Path
    key: Path
    encrypted: Path


def make(directory: Path, name: str, signer: Certificate | None = None, *, days: int = 2) -> Certificate:
    """A certificate for `localhost`, signed by `signer`; without one an authority.

    Args:
        directory: where the files go.
        name: of the files, and in the certificate.
        signer: the authority.
        days: until it expires; below 0 it has.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.name if signer else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    )
    if signer is None:
        uses = ("digital_signature", "key_cert_sign", "crl_sign")
        others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        allowed = {**dict.fromkeys(uses, True), **dict.fromkeys((*others, "encipher_only", "decipher_only"), False)}
        builder = builder.add_extension(x509.KeyUsage(**allowed), critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    signed = builder.sign(signer.private if signer else private, hashes.SHA256())
    files = [directory / f"{name}{suffix}" for suffix in (".pem", ".key", ".encrypted.key")]
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files[0].write_bytes(signed.public_bytes(pem))
    files[1].write_bytes(private.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    files[2].write_bytes(private.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret")))
    return Certificate(subject, private, *files)
