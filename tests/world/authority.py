"""A little time-stamp authority of our own: a root, a signer's certificate, and `openssl ts`."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CONFIGURATION = """
[tsa]
default_tsa = it
[it]
serial = {folder}/serial
crypto_device = builtin
signer_cert = {folder}/signer.pem
signer_key = {folder}/signer.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


TS = ["openssl", "ts", "-reply", "-section", "it", "-config"]


class Authority:
    """Files of one authority in a folder; `roots` is what a verifier trusts."""

    def __init__(self, folder: Path, name: str = "demo authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.roots = folder.resolve(), folder.resolve() / "roots.pem"
        root_key, root = _certify(f"{name} root", None, None)
        key, signer = _certify(name, root_key, root)
        self.roots.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        (folder / "signer.pem").write_bytes(signer.public_bytes(serialization.Encoding.PEM))
        (folder / "signer.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (folder / "serial").write_text("01\n")
        (folder / "tsa.cnf").write_text(CONFIGURATION.format(folder=self.folder))

    def answer(self, request: Path, response: Path) -> Path:
        """Sign a request with the time of now, by the openssl command."""
        subprocess.run(
            [*TS, self.folder / "tsa.cnf", "-queryfile", request, "-out", response],
            check=True,
            capture_output=True,
        )
        return response


def _certify(
    name: str, issuer_key: rsa.RSAPrivateKey | None, issuer: x509.Certificate | None
) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    """A root, or a signer of timestamps under it."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin.replace(year=2056))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        builder = builder.add_extension(usage, critical=True)
    return key, builder.sign(issuer_key or key, hashes.SHA256())
