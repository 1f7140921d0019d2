"""HTML of a report: its style, and pieces of a page in which every text is escaped."""

import html
import numbers
from collections.abc import Iterable
from typing import Any

from tp_jax.analysis.embedding import Picture
from tp_jax.analysis.tables import Table

# Nothing is loaded and no script runs, whatever a text contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --soft: #5b5b62; --line: #d9d9de;
  --link: #00518a; --back: #ffffff; --card: #f4f5f7 }
@media (prefers-color-scheme: dark) { :root { --text: #ececf0; --soft: #a9a9b3; --line: #3b3b42;
  --link: #7cc0f5; --back: #17171a; --card: #222227 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif }
main { max-width: 46rem; margin: 0 auto; padding: 1.2rem 1rem 4rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4rem 0 }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.6rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem }
a { color: var(--link); white-space: nowrap }
.soft, figcaption, summary { color: var(--soft); font-size: .92rem }
.summary { background: var(--card); border-radius: 10px; padding: .4rem 1.1rem }
.summary dt { font-weight: 600; margin-top: .8rem }
.summary dd { margin: .1rem 0 .8rem }
figure { margin: 1rem 0 }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px;
  border: 1px solid var(--line) }
figure.drawn img { width: 100%; max-width: 40rem; margin: 0 auto }
figcaption { margin-top: .4rem }
.scroll { overflow-x: auto; overflow-wrap: normal }
summary { cursor: pointer; padding: .3rem 0 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; max-width: 24rem }
th { font-weight: 600 }
td.number { text-align: right; white-space: nowrap }
code { font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace; font-size: .88rem }
@media (max-width: 480px) { .pictures { overflow-x: auto }
  .pictures img.wide { max-width: none; width: 200% } }
@media print { :root { color-scheme: light; --text: #000; --soft: #333; --line: #bbb; --link: #000;
    --back: #fff; --card: #f4f4f4 }
  main { max-width: none; padding: 0 }
  h2, h3 { break-after: avoid } figure, tr { break-inside: avoid }
  figure img, figure.drawn img { max-height: 20cm; max-width: 12cm; width: auto }
  .scroll { overflow: visible } details { display: none } }
"""


def page(title: str, body: str) -> str:
    """Return a whole page.

    Args:
      title: as text.
      body: as HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return a value as text of a page: escaped, in attributes too."""
    return html.escape(str(value), quote=True)


def link(anchor: str, name: str) -> str:
    """Return a link inside the page."""
    return f'<a href="#{text(anchor)}">{text(name)}</a>'


def heading(title: str, anchor: str) -> str:
    """Return the heading of a section, to which `link` leads."""
    return f'<h2 id="{text(anchor)}">{text(title)}</h2>'


def paragraph(content: str, soft: bool = False) -> str:
    """Return a text as a paragraph."""
    return f"<p{' class=soft' if soft else ''}>{text(content)}</p>"


def figure(picture: Picture, alternative: str, caption: str, drawn: bool = False) -> str:
    """Return a picture with a caption.

    Args:
      picture: what to show.
      alternative: the alt text, which says what is to be seen.
      caption: the text below.
      drawn: it is a diagram, which is scaled to the page's width; others keep their size, and wide
        ones can be scrolled on a phone.
    """
    wide = ' class="wide"' if not drawn and picture.width > 2 * picture.height else ""
    image = (
        f'<img src="{picture.address}" alt="{text(alternative)}"{wide} width="{picture.width}" '
        f'height="{picture.height}">'
    )
    if not drawn:
        image = f'<div class="pictures">{image}</div>'
    kind = ' class="drawn"' if drawn else ""
    return f"<figure{kind}>{image}<figcaption>{text(caption)}</figcaption></figure>"


def cell(value: Any) -> str:
    """Return a value of a table as a cell: numbers with four digits, a dash for None."""
    if value is None:
        return '<td class="number">–</td>'
    if isinstance(value, numbers.Real):
        shown = f"{value:.4g}" if not isinstance(value, numbers.Integral) else str(value)
        return f'<td class="number">{shown}</td>'
    return f"<td>{text(value)}</td>"


def table(content: Table) -> str:
    """Return a table, which scrolls on its own if it is wide."""
    header = "".join(f'<th scope="col">{text(name)}</th>' for name in content.header)
    rows = "".join(f"<tr>{''.join(map(cell, row))}</tr>\n" for row in content.rows)
    return (
        f'<div class="scroll"><table><thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table></div>"
    )


def folded_table(content: Table) -> str:
    """Return a table that is folded until the reader opens it."""
    note = f": {text(content.note)}; the rest is in analysis.json" if content.note else ""
    return f"<details><summary>The numbers{note}</summary>{table(content)}</details>"


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Return terms with their definitions; the definitions are HTML."""
    items = "".join(f"<dt>{text(term)}</dt><dd>{content}</dd>\n" for term, content in pairs)
    return f"<dl>{items}</dl>"


def bullets(items: Iterable[str]) -> str:
    """Return a list; the items are HTML."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"
