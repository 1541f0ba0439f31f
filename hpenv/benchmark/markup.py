"""Elements of HTML and SVG as text, with every attribute escaped."""

from __future__ import annotations

import html

#: Elements that never have an end tag.
VOID = frozenset({"meta", "link", "br", "input"})


def element(name: str, /, *content: str, **attributes: object) -> str:
    """Returns an element as text.

    Args:
        name: name of the element.
        content: markup, which is not escaped. `plain` escapes a text.
        attributes: attributes by name, with `_` for `-`, and without a `_` at the end, so that
            `class_` is `class`. True gives an attribute without a value. None and False leave it
            out.
    """
    parts = [name]
    for key, value in attributes.items():
        label = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(label)
        elif value is not None and value is not False:
            parts.append(f'{label}="{plain(value)}"')

    start = f"<{' '.join(parts)}>"
    return start if name in VOID else f"{start}{''.join(content)}</{name}>"


def plain(value: object) -> str:
    """Returns a value's text with the characters escaped that markup gives a meaning."""
    return html.escape(str(value), quote=True)
