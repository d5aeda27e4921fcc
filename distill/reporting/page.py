"""Pieces of an HTML page in one file: text that cannot become markup, tables, charts, pictures, and how it looks."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from distill.errors import printable

PHOTO_QUALITY = 85
# Nothing is loaded from elsewhere and no script runs, whatever a name that came through might say.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 68rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; padding-top: .6rem; border-top: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; }
p, li { overflow-wrap: anywhere; }
.note { color: #555; font-size: .875rem; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th { font-weight: 600; }
th:first-child, td:first-child, table.text th, table.text td { text-align: left; }
table.text td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; min-width: 7rem; }
thead th { border-bottom: 2px solid #999; vertical-align: bottom; white-space: normal; }
th:first-child { position: sticky; left: 0; background: #fff; }
td.best { font-weight: 700; }
pre { overflow-x: auto; padding: .6rem; background: #f5f5f5; border-radius: 4px; font-size: .85rem; }
code { font-size: .9em; background: #f5f5f5; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; }
figure { margin: 0; min-width: 0; }
.charts figure { flex: 0 1 29rem; }
.charts .scroll { margin: 0; max-width: 100%; }
figcaption { font-size: .875rem; color: #555; }
.charts svg { display: block; max-width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif !important; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .4rem; }
.panels img { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .4rem 0; padding: 0; list-style: none;
  font-size: .85rem; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; border: 1px solid #000;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
@media (max-width: 30rem) {
  body { padding: .6rem; }
  th, td { padding: .2rem .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  figure, .panels, .keep, tr { break-inside: avoid; }
  p, .marks { break-after: avoid; }
  .scroll, pre { overflow: visible; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  th, td { padding: .15rem .4rem; }
  table { font-size: 8.5pt; }
  .charts figure { flex-basis: 46%; }
  .panels { grid-template-columns: repeat(6, 1fr); }
}
"""


def text(value: str) -> str:
    """A text that stays one: no markup, no control characters; a number and its percent sign stay on one line."""
    return html.escape(printable(value)).replace(" %", "\N{NO-BREAK SPACE}%")


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page."""
    body = "\n".join(part for part in parts if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{text(title)}</h1>
{body}
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A heading with what is below it; nothing at all if there is nothing."""
    inside = "\n".join(part for part in parts if part)
    identity = re.sub(r"[^a-z]+", "-", title.lower()).strip("-")
    return f'<section id="{identity}">\n<h2>{text(title)}</h2>\n{inside}\n</section>' if inside else ""


def heading(title: str) -> str:
    """A heading within a section."""
    return f"<h3>{text(title)}</h3>"


def paragraph(words: str, note: bool = False) -> str:
    """A paragraph; what stands between backticks is code."""
    inside = re.sub(r"`([^`]+)`", r"<code>\1</code>", text(words))
    return f'<p class="note">{inside}</p>' if note else f"<p>{inside}</p>"


def table(rows: Sequence[Sequence[str]], words: bool = False, best: Iterable[tuple[int, int]] = ()) -> str:
    """A table that scrolls where it is too wide.

    Args:
        rows: the header first; the first cell of a row is its name.
        words: cells are words, not numbers.
        best: row and column of what is to stand out, counted from 0 with the header.
    """
    marked = set(best)
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in rows[0])
    lines = [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for i, row in enumerate(rows[1:], 1):
        cells = [f'<th scope="row">{text(row[0])}</th>']
        for j, cell in enumerate(row[1:], 1):
            cells.append(f'<td class="best">{text(cell)}</td>' if (i, j) in marked else f"<td>{text(cell)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    inside = "\n".join([*lines, "</tbody>"])
    kind = "text" if words else "numbers"
    return f'<div class="scroll"><table class="{kind}">\n{inside}\n</table></div>'


def charts(*drawn: tuple[str, str], beside: str = "") -> str:
    """Charts beside each other, SVG and caption each, and what else is to stand there."""
    figures = [
        f"<figure>{svg}{f'<figcaption>{text(caption)}</figcaption>' if caption else ''}</figure>"
        for svg, caption in drawn
    ]
    return f'<div class="charts">{"".join(figures)}{beside}</div>' if figures else ""


def code(words: str) -> str:
    """Words to be typed."""
    return f"<pre><code>{html.escape(printable(words))}</code></pre>"


def panels(pictures: dict[str, np.ndarray]) -> str:
    """Pictures uint8 `[H, W, 3]` beside each other, by title; as many in a row as there is room for."""
    figures = []
    for title, picture in pictures.items():
        figures.append(
            f'<figure><img src="{_data_uri(picture)}" width="{picture.shape[1]}" height="{picture.shape[0]}" '
            f'alt="{text(title)}"><figcaption>{text(title)}</figcaption></figure>'
        )
    return f'<div class="panels">{"".join(figures)}</div>'


def keep(*parts: str) -> str:
    """What is not to be torn apart by the end of a printed page."""
    return f'<div class="keep">{"".join(parts)}</div>'


def legend(entries: Iterable[tuple[str, Sequence[int]]], marks: bool = False) -> str:
    """Names and colors, of classes or of marks."""
    items = "".join(
        f'<li><i style="background:#{red:02x}{green:02x}{blue:02x}"></i>{text(name)}</li>'
        for name, (red, green, blue) in entries
    )
    return f'<ul class="legend{" marks" if marks else ""}">{items}</ul>'


def _data_uri(picture: np.ndarray) -> str:
    """A picture within the page: PNG if it has few colors, as masks do, or JPEG."""
    image = Image.fromarray(picture)
    file, kind = io.BytesIO(), "png"
    if image.getcolors(256):
        image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(file, "PNG", optimize=True)
    else:
        image.save(file, "JPEG", quality=PHOTO_QUALITY, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
