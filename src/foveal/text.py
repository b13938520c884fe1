"""Text from files (names, messages, descriptions) made safe for terminals, tables and Markdown."""

from __future__ import annotations

import re
import sys

# Control characters, which terminals obey; line and paragraph separators; marks that change the direction of writing;
# and lone surrogates, by which Python represents bytes of file names that are no text.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*[]|"}


def printable(text: object) -> str:
    """``str(text)`` on one line, with control characters as escapes such as ``\\x1b`` and ``\\n``."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text))


def markdown(text: object) -> str:
    """``str(text)`` as plain text in Markdown, also inside a table: no markup, HTML or link of its own."""
    return "".join(_MARKUP.get(sign, sign) for sign in printable(text))


def notice(text: object) -> None:
    """Print one line on standard error."""
    print(printable(text), file=sys.stderr, flush=True)
