# SPDX-License-Identifier: Apache-2.0
"""References and ids as people read them. What a reference means, hyperd decides."""

TRANSPORTS = ("docker-archive:", "oci-archive:", "oci:", "docker-daemon:", "docker:", "dir:")
SHORT_ID = 12


def shorten_id(identifier: str) -> str:
    return identifier.removeprefix("sha256:")[:SHORT_ID]


def is_registry_reference(reference: str) -> bool:
    return not reference.startswith(TRANSPORTS)


def split_reference(reference: str) -> tuple[str, str, str]:
    """`host:5000/name:tag@digest` -> name with host, tag, digest; what is absent is ""."""
    name, _, digest = reference.partition("@")
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        return head, tag, digest
    return name, "", digest


def familiar_name(name: str) -> str:
    """docker.io/library/alpine -> alpine, as Docker shows it."""
    for prefix in ("docker.io/library/", "docker.io/"):
        if name.startswith(prefix) and (prefix != "docker.io/library/" or "/" not in name[len(prefix) :]):
            return name.removeprefix(prefix)
    return name


def with_default_tag(reference: str) -> str:
    if not is_registry_reference(reference):
        return reference
    _, tag, digest = split_reference(reference)
    return reference if tag or digest else f"{reference}:latest"
