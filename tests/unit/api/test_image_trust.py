# SPDX-License-Identifier: Apache-2.0
"""How an image came in, from the store's words to the document that `hyper image inspect` prints."""

from dataclasses import replace
from datetime import UTC, datetime

from hyperctl.image_shape import image_document
from hyperd.api.image_convert import encode_image
from hyperd.model.image import Admission, Digest, Requirement
from tests.fakes.image import image_named

DIGEST = Digest("sha256:" + "1" * 64)


def test_what_let_an_image_in_is_shown() -> None:
    image = image_named("busybox", None, layers=2)
    admission = Admission(
        "docker.io/library/busybox:latest",
        DIGEST,
        "docker:docker.io/library",
        (Requirement("signedBy", ("/etc/key.gpg sha256:00",), "matchExact"),),
        datetime(2026, 11, 29, 12, 30, tzinfo=UTC),
    )
    assert image_document(encode_image(image))["Trust"] == []
    assert image_document(encode_image(replace(image, admissions=(admission,))))["Trust"] == [
        {
            "Reference": "docker.io/library/busybox:latest",
            "ManifestDigest": DIGEST,
            "Scope": "docker:docker.io/library",
            "Requirements": [
                {"Type": "signedBy", "Keys": ["/etc/key.gpg sha256:00"], "SignedIdentity": "matchExact"}
            ],
            "AdmittedAt": "2026-11-29T12:30:00Z",
        }
    ]
