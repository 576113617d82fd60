"""A page of HTML that needs nothing but itself."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from .analysis import Row

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 24px auto; padding: 0 16px; }
h1 { font-size: 26px; margin-bottom: 4px; } h2 { font-size: 20px; margin-top: 40px; border-bottom: 1px solid #ccc; }
nav a { margin-right: 14px; } p.note, figcaption { color: #555; font-size: 13px; max-width: 900px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
th { background: #f3f3f3; position: sticky; top: 0; cursor: pointer; } tr:hover td { background: #f6faff; }
.scroll { display: inline-block; max-width: 100%; max-height: 620px; overflow: auto; margin: 8px 0; }
.scroll { border: 1px solid #ddd; }
svg { max-width: 100%; height: auto; } use:hover { stroke: black; stroke-width: 2px; }
.pictures { display: flex; flex-wrap: wrap; gap: 12px; } .pictures figure { margin: 0; width: 270px; }
.pictures img { width: 270px; height: 230px; object-fit: contain; background: #f0f0f0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
"""

# Sorts a table by the column whose head is clicked: falling first, then rising; rows without a value stay at the end.
_SCRIPT = """
for (const head of document.querySelectorAll('th')) head.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], column = head.cellIndex, sign = head.dataset.falling ? 1 : -1;
  for (const other of head.parentNode.cells) delete other.dataset.falling;
  if (sign < 0) head.dataset.falling = 1;
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  [...body.rows].map(row => [key(row), row])
    .sort(([a], [b]) => (a === '') - (b === '') || sign * compare(a, b))
    .forEach(([, row]) => body.append(row));
});
"""


class Column(NamedTuple):
    """How a column of a table is shown."""

    key: str  # of the rows
    head: str
    format: str | None = None  # of its numbers; None: text


def page(title: str, introduction: str, sections: Sequence[tuple[str, str]]) -> str:
    """The document; sections are (heading, HTML)."""
    links = "".join(f'<a href="#s{i}">{escape(heading)}</a>' for i, (heading, _) in enumerate(sections))
    body = "".join(f'<h2 id="s{i}">{escape(heading)}</h2>\n{html}\n' for i, (heading, html) in enumerate(sections))
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{introduction}\n<nav>{links}</nav>\n"
        f"{body}<script>{_SCRIPT}</script></body></html>\n"
    )


def definitions(entries: dict[str, Any]) -> str:
    """Names and values, one below the other; entries that are None are left out."""
    shown = (f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items() if v is not None)
    return f"<dl>{''.join(shown)}</dl>"


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A table that a click on a head sorts; columns that no row has are left out."""
    columns = [column for column in columns if any(column.key in row for row in rows)]
    heads = "".join(f"<th{_class_of(column)}>{escape(column.head)}</th>" for column in columns)
    lines = ("<tr>" + "".join(_cell(row.get(column.key), column) for column in columns) + "</tr>" for row in rows)
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody></table></div>'


def pictures(shown: Sequence[tuple[bytes, str]]) -> str:
    """JPEG images with their captions."""
    figures = (
        f'<figure><img alt="" src="data:image/jpeg;base64,{b64encode(jpeg).decode()}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for jpeg, caption in shown
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def _cell(value: Any, column: Column) -> str:
    if value is None:
        return f'<td{_class_of(column)} data-value="">n/a</td>'
    if column.format is None:
        return f"<td{_class_of(column)}>{escape(str(value))}</td>"
    return f'<td data-value="{value:.8g}">{value:{column.format}}</td>'


def _class_of(column: Column) -> str:
    return ' class="text"' if column.format is None else ""
