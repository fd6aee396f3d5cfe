"""What stands between a server and whoever reaches it: keys, limits, certificate, and web pages that may call."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from polyserve.api.keys import KeyRing
from polyserve.api.limits import Limits
from polyserve.config import ServerConfig
from polyserve.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM: a certificate with what vouches for it, and its private key."""

    chain: Path
    key: Path

    def check(self) -> None:
        """Raise SettingsError unless they can be used."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl's errors are OSErrors
            raise SettingsError(f"{self.chain} and {self.key}: no certificate and its key: {error}") from error


@dataclass(frozen=True, slots=True)
class Protection:
    """Without arguments: open to all who reach the server, over plain text, within the default limits."""

    keys: KeyRing = field(default_factory=KeyRing)
    limits: Limits = field(default_factory=Limits)
    certificate: Certificate | None = None
    cors_origins: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, server: ServerConfig, limits: Limits) -> "Protection":
        """Reads the keys and looks at the certificate. Raises SettingsError."""
        certificate = None
        if server.tls_cert is not None and server.tls_key is not None:
            certificate = Certificate(Path(server.tls_cert), Path(server.tls_key))
            certificate.check()
        keys = KeyRing.from_environment(server.api_keys_file)
        return cls(keys, limits, certificate, tuple(server.cors_origins))


def _no_password() -> str:
    raise ValueError("the key is encrypted")
