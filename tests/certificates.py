"""Certificates for tests, made by the `openssl` command."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
CA_USE = ("-addext", "keyUsage=critical,keyCertSign,digitalSignature")


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files, PEM."""

    key: str
    cert: str


def make_certificate(
    folder: Path, name: str, *, signed_by: Certificate | None = None, password: str | None = None
) -> Certificate:
    """For 127.0.0.1, valid today. Signed by itself, unless by another."""
    made = Certificate(str(folder / f"{name}.key"), str(folder / f"{name}.pem"))
    locked = ("-nodes",) if password is None else ("-passout", f"pass:{password}")
    signer = CA_USE if signed_by is None else ("-CA", signed_by.cert, "-CAkey", signed_by.key)
    about = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1")
    files = ("-keyout", made.key, "-out", made.cert)
    command = ("openssl", "req", "-x509", *EC, *locked, *signer, *about, *files)
    subprocess.run(command, check=True, capture_output=True)
    return made
