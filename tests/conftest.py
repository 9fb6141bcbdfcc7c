"""Fixtures for every layer of the tests."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
from collections.abc import Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import settings
from rankmq.workers.broker import PrivateBroker, TlsFiles, find_server

# How long an example takes says more of the machine than of the code.
settings.register_profile("rankmq", deadline=None)
settings.load_profile("rankmq")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    """One private node for the whole session: leave it running, and name queues so that they are your own."""
    if find_server() is None and os.environ.get("RANKMQ_BROKER_URL"):
        pytest.skip("needs a rabbitmq-server of its own on this machine")
    with PrivateBroker(tmp_path_factory.mktemp("broker")) as node:
        yield node


@pytest.fixture(scope="session")
def broker_url(request: pytest.FixtureRequest) -> str:
    """The AMQP URL of `broker`; RANKMQ_BROKER_URL on a machine without rabbitmq-server."""
    given = os.environ.get("RANKMQ_BROKER_URL")
    if given and find_server() is None:
        return given
    node: PrivateBroker = request.getfixturevalue("broker")
    return node.url


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A certificate for localhost, good for a server and for a client, and the authority that signed it."""
    folder = tmp_path_factory.mktemp("certificates")
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    (folder / "ca.pem").write_bytes(_certificate("rankmq tests", authority, signed_by=authority).public_bytes(pem))
    (folder / "cert.pem").write_bytes(
        _certificate("localhost", key, signed_by=authority, names=names).public_bytes(pem)
    )
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return TlsFiles(ca=folder / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    signed_by: ec.EllipticCurvePrivateKey,
    names: list[x509.GeneralName] | None = None,
) -> x509.Certificate:
    def called(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    now = datetime.datetime.now(datetime.UTC)
    authority = names is None
    usage = dict.fromkeys(("content_commitment", "data_encipherment", "encipher_only", "decipher_only"), False) | {
        "digital_signature": not authority,
        "key_encipherment": False,
        "key_agreement": not authority,
        "key_cert_sign": authority,
        "crl_sign": authority,
    }
    draft = (
        x509.CertificateBuilder()
        .subject_name(called(subject))
        .issuer_name(called("rankmq tests"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key()), critical=False)
    )
    if names is not None:
        draft = draft.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return draft.sign(signed_by, hashes.SHA256())


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A command that a test runs in this process sets up its logs: that is not to last."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
