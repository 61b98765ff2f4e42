# SPDX-License-Identifier: Apache-2.0
"""A host with a signature policy, and somebody who signs: real gpg and skopeo, with a home directory of their own.

with host_with_policy(tmp_path, monkeypatch) as host:
    host.allow({f"docker:{hub.address}": signed_by(host.signer.public)})
    await host.signer.sign(built.manifest, name)
"""

import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hyperd.host import process
from tests.images import ROOT, digest_of

ACCEPT: list[dict[str, Any]] = [{"type": "insecureAcceptAnything"}]
REJECT: list[dict[str, Any]] = [{"type": "reject"}]
SIGSTORE_KEY = (
    ROOT / "tests/golden/image/sigstore.key"
)  # its passphrase is "hyper"; made for these tests alone
SIGSTORE_PUBLIC = ROOT / "tests/golden/image/sigstore.pub"


def signed_by(key: Path, identity: str = "") -> list[dict[str, Any]]:
    asked: dict[str, Any] = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(key)}
    return [asked | ({"signedIdentity": {"type": identity}} if identity else {})]


def sigstore_signed(key: Path) -> list[dict[str, Any]]:
    return [{"type": "sigstoreSigned", "keyPath": str(key), "signedIdentity": {"type": "matchRepository"}}]


@dataclass(frozen=True)
class Host:
    home: Path
    gnupg: Path
    fingerprint: str

    @property
    def public(self) -> Path:
        return self.home / "public.gpg"

    @property
    def signatures(self) -> Path:
        return self.home / "signatures"

    def allow(self, scopes: Mapping[str, Sequence[Any]], *, default: Sequence[Any] = ACCEPT) -> None:
        """``scopes``: TRANSPORT:KEY."""
        transports: dict[str, dict[str, Any]] = {}
        for scope, asked in scopes.items():
            transport, _, key = scope.partition(":")
            transports.setdefault(transport, {})[key] = asked
        policy = self.home / ".config/containers/policy.json"
        policy.write_text(json.dumps({"default": default, "transports": transports}))

    async def sign(self, manifest: bytes, name: str) -> None:
        """A simple signature, where the host looks for such."""
        repository = name.partition("/")[2].rpartition(":")[0]
        where = self.signatures / f"{repository}@{digest_of(manifest).replace(':', '=')}"
        where.mkdir(parents=True, exist_ok=True)
        signed = self.home / "manifest.json"
        signed.write_bytes(manifest)
        number = len(list(where.iterdir())) + 1
        output = f"--output={where}/signature-{number}"
        await process.run_checked(
            ["skopeo", "standalone-sign", str(signed), name, self.fingerprint, output], timeout_s=60
        )

    async def push_signed_by_sigstore(self, source: str, target: str) -> bool:
        """False where this skopeo is built without."""
        passphrase = self.home / "passphrase"
        passphrase.write_text("hyper")
        finished = await process.run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "--preserve-digests",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                f"--sign-by-sigstore-private-key={SIGSTORE_KEY}",
                f"--sign-passphrase-file={passphrase}",
                f"docker://{source}",
                f"docker://{target}",
            ],
            timeout_s=60,
        )
        built_without = "sigstore disabled" in finished.stderr_tail
        assert built_without or finished.returncode == 0, finished.stderr_tail
        return not built_without


@contextlib.asynccontextmanager
async def host_with_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    home = tmp_path / "home"
    (home / ".config/containers/registries.d").mkdir(parents=True)
    (home / ".config/containers/registries.d/test.yaml").write_text(
        f"default-docker: {{lookaside: 'file://{home}/signatures', use-sigstore-attachments: true}}\n"
    )
    gnupg = Path(tempfile.mkdtemp(prefix="gnupg-"))  # its agent's socket wants a short path
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GNUPGHOME", str(gnupg))
    key = ["gpg", "--batch", "--passphrase", "", "--quick-gen-key", "tests@hyper.invalid", "ed25519", "sign"]
    try:
        await process.run_checked(key, timeout_s=60)
        listed = await process.run_checked(["gpg", "--list-keys", "--with-colons"], timeout_s=60)
        [fingerprint] = [
            line.split(":")[9] for line in listed.stdout.decode().splitlines() if line.startswith("fpr:")
        ]
        public = await process.run_checked(["gpg", "--export", fingerprint], timeout_s=60)
        (home / "public.gpg").write_bytes(public.stdout)
        host = Host(home, gnupg, fingerprint)
        host.allow({})
        yield host
    finally:
        await process.run_checked(["gpgconf", "--kill", "all"], timeout_s=60)
        shutil.rmtree(gnupg, ignore_errors=True)
