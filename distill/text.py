"""Names that others chose (of files, of classes) where a terminal, Markdown or HTML would obey them."""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from typing import TextIO

OBEYED = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, bytes that are no UTF-8, other ends of a line


def harmless(name: str) -> bool:
    """Whether a name is UTF-8 and has no control character."""
    return not any(unicodedata.category(c) in OBEYED for c in name)


def printable(text: str, keep: str = "") -> str:
    """The text with escapes such as `\\x1b` for what `harmless` looks for, but for the characters to keep."""
    if harmless(text):
        return text
    return "".join(c if c in keep or harmless(c) else c.encode("unicode_escape").decode() for c in text)


def say(text: str, file: TextIO | None = None) -> None:
    """Prints lines that a terminal only shows; an escape sequence in a name would move the cursor or worse."""
    print(printable(text, keep="\n"), file=file or sys.stdout, flush=True)


def cell(text: str) -> str:
    """The text as one cell of a Markdown table: neither HTML nor markup, nor the end of the cell."""
    plain = html.escape(printable(text), quote=False)
    return re.sub(r"[\\`*~|]|\](?=[(\[])", r"\\\g<0>", plain)
