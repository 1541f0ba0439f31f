"""Markdown of generated pages: tables, links, and docstrings."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent

#: Files outside of docs/ that have a page on the site.
PAGES = {
    "README.md": "generated/start.md",
    "CONTRIBUTING.md": "generated/contributing.md",
    "CHANGELOG.md": "generated/changelog.md",
    "SECURITY.md": "generated/security.md",
    "results/README.md": "generated/results.md",
    "results/benchmark/README.md": "generated/results_benchmark.md",
}

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)\s]+)\)")
_IMAGE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")
_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example|References):$")
_ENTRY = re.compile(r"(\*{0,2}[\w.`/ ,]+?):\s+(.*)")


def cell(text: object) -> str:
    """Returns text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines) + "\n"


def code(text: object) -> str:
    """Returns text as code, or nothing for an empty text."""
    return f"`{text}`" if str(text) else ""


def codes(names: Iterable[object]) -> str:
    """Returns names as code, with commas."""
    return ", ".join(map(code, names))


def relocate(text: str, source: Path, page: Path) -> str:
    """Returns the text of a file whose links lead to pages of the site.

    A link to a file that has no page becomes its text. Blocks of code stay as they are.

    Args:
        text: Markdown.
        source: folder that the links of the text start from.
        page: folder of the page.
    """

    def link(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        path, _, anchor = target.partition("#")
        place = _place((source / path).resolve())
        if place is None:
            return label if "`" in label or not re.search(r"[/.]\w*$", label) else f"`{label}`"
        return f"[{label}]({os.path.relpath(place, page)}{'#' if anchor else ''}{anchor})"

    def image(match: re.Match[str]) -> str:
        place = (source / match[2]).resolve()
        return f"![{match[1]}]({os.path.relpath(place, page)})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(
        part if part.startswith("```") else _IMAGE.sub(image, _LINK.sub(link, part))
        for part in parts
    )


def _place(path: Path) -> Path | None:
    """Returns the page of a file of the repository, or None."""
    if path.is_relative_to(DOCS):
        return path
    name = PAGES.get(str(path.relative_to(ROOT))) if path.is_relative_to(ROOT) else None
    return DOCS / name if name else None


def join_rows(text: str) -> str:
    """Returns a text whose tables have one line for each row.

    Docstrings continue a row in the next line, with an empty first cell.
    """
    lines: list[str] = []
    for line in text.splitlines():
        cells = line.strip().strip("|").split("|")
        if line.startswith("|") and not cells[0].strip() and lines and lines[-1].startswith("|"):
            before = lines[-1].strip("|").split("|")
            joined = [
                f"{a.rstrip()} {b.strip()}".rstrip() for a, b in zip(before, cells, strict=True)
            ]
            lines[-1] = "|" + " |".join(joined) + " |"
        elif line.startswith("|"):
            lines.append("|" + " |".join(part.rstrip() for part in cells) + " |")
        else:
            lines.append(line)
    return "\n".join(lines)


def docstring_of(thing: object) -> str:
    """Returns a docstring as Markdown: its text, then its sections as lists."""
    parts: list[str] = []
    section: list[str] = []
    heading = ""
    for line in [*inspect.cleandoc(inspect.getdoc(thing) or "").splitlines(), ""]:
        found = _SECTION.match(line)
        inside = heading and (line.startswith(" ") or not line)
        if inside:
            section.append(line)
            continue
        if heading:
            parts.append(_section(heading, section))
            heading, section = "", []
        if found:
            heading = found[1]
        else:
            parts.append(line)
    if heading:
        parts.append(_section(heading, section))
    return join_rows("\n".join(parts).rstrip()) + "\n"


def _section(heading: str, lines: Sequence[str]) -> str:
    body = inspect.cleandoc("\n".join(["", *lines]))
    if heading in ("Args", "Attributes", "Raises"):
        body = _entries(body)
    return f"\n**{heading}**\n\n{body}\n"


def _entries(body: str) -> str:
    """Returns `name: text` entries as a list. Indented lines continue an entry."""
    items: list[str] = []
    for line in body.splitlines():
        found = None if line.startswith(" ") else _ENTRY.match(line)
        if found:
            items.append(f"- {code(found[1].strip('`'))}: {found[2]}")
        elif line.strip():
            items.append(f"  {line.strip()}")
    return "\n".join(items)


def write_pages(folder: Path, pages: Mapping[str, str]) -> None:
    """Writes pages, and removes all others. A page that is the same keeps its time."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.rglob("*.md")):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
