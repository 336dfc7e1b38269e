"""HTTPS: the server's certificate, and whether clients need one."""

import ssl
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Tls:
    certfile: str
    """PEM, with the chain."""
    keyfile: str | None = None
    """PEM; None: it is in `certfile`."""
    ca_certs: str | None = None
    """Who signs clients' certificates."""
    cert_reqs: int = ssl.CERT_NONE
    """Whether clients need one: as in the module `ssl`, 0 no, 1 if they show it it must be good, 2 yes."""
    keyfile_password: str | None = field(default=None, repr=False)
    """The key's passphrase; None: it has none."""

    def check(self) -> None:
        """Raises ValueError if the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certfile, self.keyfile, password=self._passphrase)
            if self.ca_certs is not None:
                context.load_verify_locations(self.ca_certs)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"the certificate or its key cannot be used: {error}") from error

    def for_uvicorn(self) -> dict[str, Any]:
        return {
            "ssl_certfile": self.certfile,
            "ssl_keyfile": self.keyfile,
            "ssl_ca_certs": self.ca_certs,
            "ssl_cert_reqs": self.cert_reqs,
            "ssl_keyfile_password": self.keyfile_password,
        }

    def _passphrase(self) -> str:
        """Asked for if the key has one: else OpenSSL would ask at the terminal."""
        if self.keyfile_password is None:
            raise ValueError("the key has a passphrase: give --ssl-keyfile-password")
        return self.keyfile_password
