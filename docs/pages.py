"""Pages of files that stand outside of docs/: the README, and what it links to."""

from __future__ import annotations

import os

from docs.markdown import DOCS, PAGES, ROOT, relocate

#: Titles of pages whose file has another one.
TITLES = {"README.md": "# Start", "results/benchmark/README.md": "# Boards"}


def pages() -> dict[str, str]:
    """Returns the pages: name -> Markdown."""
    found = {}
    for name, place in PAGES.items():
        file, page = ROOT / name, DOCS / place
        text = relocate(file.read_text(encoding="utf-8"), file.parent, page.parent)
        if name in TITLES:
            text = TITLES[name] + "\n" + text.partition("\n")[2]
        found[os.path.relpath(page, DOCS / "generated")] = text
    return found
