"""Where the broker is: an amqp or amqps URL and the certificates that go with it. Never shows its password."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ..schemas.errors import BrokerRefused, BrokerUnavailable, ConfigurationError, RankmqError

__all__ = ["BrokerAddress"]


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker, a virtual host on it, and who we are there.

    Attributes:
        host: name or address.
        port: 5672, or 5671 with TLS, unless said otherwise.
        user: user name.
        password: kept out of `repr` and `str`.
        vhost: virtual host.
        tls: whether the URL says amqps.
        ca_file: PEM file of the authority that signed the broker's certificate; the system's authorities otherwise.
        cert_file: PEM file of our own certificate, if the broker wants one.
        key_file: its key, if not in `cert_file`.
    """

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str = "/"
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def parse(
        cls, url: str, *, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
    ) -> BrokerAddress:
        """The address that a URL stands for: `amqp[s]://user:password@host:port/vhost`.

        Raises:
            ConfigurationError: not such a URL, or a certificate file that is not there.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigurationError(
                "the broker URL cannot be read; it looks like amqp://user:password@host:5672/%2F"
            ) from None
        if "@" in parts.path or parts.query or parts.fragment:
            raise ConfigurationError(
                "the broker URL ends with its virtual host: write / ? # @ and : in a user, password or virtual host as "
                "%2F %3F %23 %40 and %3A"
            )
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ConfigurationError("the broker URL must look like amqp://user:password@host:5672/%2F (or amqps://)")
        for path in (ca_file, cert_file, key_file):
            if path is not None and not path.is_file():
                raise ConfigurationError(f"no certificate file {path}")
        tls = parts.scheme == "amqps"
        vhost = unquote(parts.path[1:]) if len(parts.path) > 1 else "/"
        return cls(
            host=parts.hostname,
            port=port or (5671 if tls else 5672),
            user=unquote(parts.username or "guest"),
            password=unquote(parts.password or "guest"),
            vhost=vhost,
            tls=tls,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context, or None for plain amqp.

        Raises:
            ConfigurationError: a certificate or key that cannot be read.
        """
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
            if self.cert_file:
                key = str(self.key_file) if self.key_file else None
                context.load_cert_chain(str(self.cert_file), key, password=_no_password)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(f"the broker's certificate files cannot be read: {error}") from None
        return context

    def __str__(self) -> str:
        """For logs: without the password."""
        scheme = "amqps" if self.tls else "amqp"
        vhost = "" if self.vhost == "/" else "/" + quote(self.vhost, safe="")
        return f"{scheme}://{quote(self.user, safe='')}@{self._place()}{vhost}"

    def url(self) -> str:
        """The whole URL, with the password: for handing on, never for logs."""
        scheme = "amqps" if self.tls else "amqp"
        user, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"{scheme}://{user}:{password}@{self._place()}/{quote(self.vhost, safe='')}"

    def named(self, error: RankmqError) -> RankmqError:
        """An error that says of which broker it is, where it is one of a broker."""
        return (
            type(error)(f"{self}: {error.message}") if isinstance(error, BrokerUnavailable | BrokerRefused) else error
        )

    def _place(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _no_password() -> str:
    """A key under a password is an error: without this, OpenSSL would ask for it on the terminal, and wait."""
    return ""
