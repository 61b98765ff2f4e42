# SPDX-License-Identifier: Apache-2.0
"""Every relative link of every page leads somewhere, to the heading that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
LINK = re.compile(r"\]\(([^):]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path):
    broken = [
        target for target in LINK.findall(page.read_text()) if not leads_somewhere(page, target.strip())
    ]
    assert not broken


def leads_somewhere(page: Path, target: str) -> bool:
    name, _, heading = target.partition("#")
    place = page.parent / name if name else page
    return place.exists() and (not heading or heading in headings(place))


def headings(page: Path) -> set[str]:
    """As GitHub names them."""
    found = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}
