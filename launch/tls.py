"""HTTPS from its options, and its passphrase from the environment."""

import os
from collections.abc import MutableMapping
from dataclasses import replace

from ..router.tls import Tls
from .config import TlsOptions
from .resolve import ConfigError

PASSWORD = "ISTHMUS_SSL_KEYFILE_PASSWORD"


def with_password(options: TlsOptions, environment: MutableMapping[str, str] = os.environ) -> TlsOptions:
    """A passphrase that no option gives is the environment's, which keeps none: no process started later has it."""
    password = environment.pop(PASSWORD, "")
    if options.ssl_certfile is None or options.ssl_keyfile_password:
        return options
    return replace(options, ssl_keyfile_password=password or None)


def hide_password(options: TlsOptions) -> tuple[TlsOptions, dict[str, str]]:
    """For the router's command line, which every user of the host can read, and its environment, which they cannot."""
    password = options.ssl_keyfile_password
    return replace(options, ssl_keyfile_password=None), {PASSWORD: password} if password else {}


def make_tls(options: TlsOptions) -> Tls | None:
    """None: plain HTTP. Raises ConfigError."""
    if options.ssl_certfile is None:
        if options != TlsOptions():
            raise ConfigError("HTTPS needs a certificate: give --ssl-certfile")
        return None
    if bool(options.ssl_cert_reqs) != (options.ssl_ca_certs is not None):
        raise ConfigError("clients' certificates need both --ssl-ca-certs and --ssl-cert-reqs 1 or 2")
    tls = Tls(
        options.ssl_certfile,
        options.ssl_keyfile,
        options.ssl_ca_certs,
        options.ssl_cert_reqs,
        options.ssl_keyfile_password,
    )
    try:
        tls.check()
    except ValueError as error:
        raise ConfigError(f"HTTPS: {error}") from error
    return tls
