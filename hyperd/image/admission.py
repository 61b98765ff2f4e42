# SPDX-License-Identifier: Apache-2.0
"""Whether the host's signature policy lets an image in, decided before anything of it is kept.

    policy asks nothing of anybody  --> admitted, and no request made
    else: skopeo copies it, under the policy and the name that was asked for, to a witness
          --> the manifest it was shown is the very one that is pulled: admitted

A policy is about a name, so this is done for every pull, also when the image is here: another name may ask for more.
Of an index it is the chosen manifest that must be signed, as with skopeo and podman.
"""

import secrets
from datetime import UTC, datetime
from pathlib import Path

from hyperd.errors import DeniedError
from hyperd.host import files
from hyperd.host.workers import Workers
from hyperd.image.policy import Policy, Verdict, read_policy
from hyperd.image.reference import Source
from hyperd.image.transport import Remote, Skopeo
from hyperd.image.witness import Witness
from hyperd.model.image import Admission, Digest

SIGSTORE = "sigstoreSigned"
SIGSTORE_SINCE = (1, 13)


class Admissions:
    def __init__(self, skopeo: Skopeo, workers: Workers, temporary: Path) -> None:
        self._skopeo = skopeo
        self._workers = workers
        self._temporary = temporary

    async def admit(self, remote: Remote, manifest: Digest, subject: str) -> Admission:
        """``manifest``: the digest of the one that will be kept. Raises DeniedError, and what a pull raises."""
        policy, verdict = await self._workers.call(self._read, remote.source)
        if not policy.asks_nothing:
            try:
                shown = await self._shown(remote, policy)
            except DeniedError as error:
                error.subject = subject  # of an archive it would be a directory of ours
                if any(each.kind == SIGSTORE for each in verdict.requirements):
                    error.hint = error.hint or await self._hint_for_sigstore()
                raise
            if shown != manifest:
                raise DeniedError(
                    "the manifest that the registry serves is not the one that the host's policy allows",
                    subject=subject,
                    evidence=f"it was asked for twice: {manifest}, then {shown}",
                    hint="its tag may just have moved: try again",
                )
        return Admission(subject, manifest, verdict.scope, verdict.requirements, datetime.now(UTC))

    async def _hint_for_sigstore(self) -> str:
        version = await self._skopeo.version()
        if version >= SIGSTORE_SINCE:
            return ""
        has = ".".join(map(str, version)) or "of an unknown version"
        return (
            f"the policy asks for a sigstore signature, and this host's skopeo ({has}) may not know them, as Debian "
            f"12's: install skopeo >= {'.'.join(map(str, SIGSTORE_SINCE))}"
        )

    def _read(self, source: Source) -> tuple[Policy, Verdict]:
        policy = read_policy(self._skopeo.policy_path())
        return policy, policy.verdict(source)

    async def _shown(self, remote: Remote, policy: Policy) -> Digest | None:
        witness = Witness()
        directory = self._temporary / f"admission-{secrets.token_hex(8)}"
        try:
            async with witness.listening():
                body = witness.render_authfile()
                await self._workers.call_while_wanted(lambda _: _prepare(directory, policy.raw, body))
                await self._skopeo.show(
                    remote, directory / "policy.json", witness.reference, directory / "auth.json"
                )
        finally:
            await self._workers.call(files.remove_tree, directory)
        return witness.manifest


def _prepare(directory: Path, policy: bytes, authfile: bytes) -> None:
    with files.file_errors(directory):
        files.make_directory(directory, 0o700)
        (directory / "policy.json").write_bytes(policy)
        (directory / "auth.json").write_bytes(authfile)
