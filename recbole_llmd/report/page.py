"""One self-contained HTML page: text, tables and plotly figures; it loads nothing from the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from recbole_llmd.atomic_write import atomic_write
from recbole_llmd.report.table import Column, Row, columns_of

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

CONTENTS_FROM = 4  # sections: fewer need no table of contents
STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #666; --line: #ddd; --ground: #fff; --stripe: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --soft: #999; --line: #444; --ground: #181a1d; --stripe: #202327; }
  .js-plotly-plot .infolayer text, .js-plotly-plot [class$=tick] text { fill: #ddd !important; }
}
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 24px; }
h1 { line-height: 1.2; margin: 0 0 12px; }
h2 { margin: 48px 0 8px; padding-top: 8px; border-top: 1px solid var(--line); }
p { max-width: 46em; margin: 8px 0; overflow-wrap: anywhere; }
a { color: inherit; }
nav ul { columns: 2 20em; padding-left: 1.2em; }
.scroll { overflow-x: auto; margin: 16px 0; }
.scroll p { margin: 0 0 4px; font-weight: 600; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
.left { text-align: left; }
tbody tr:nth-child(even) { background: var(--stripe); }
"""


@dataclass(frozen=True)
class Table:
    """Rows (dicts, or a pandas DataFrame) with their columns (default: every key), and a caption above them.

    >>> print(Table([{"arm": "retrained", "seconds": 13.14}]).html())
    <div class="scroll"><table><thead><tr><th class="left">arm</th><th>seconds</th></tr></thead><tbody>
    <tr><td class="left">retrained</td><td>13.1</td></tr>
    </tbody></table></div>
    """

    rows: Sequence[Row] | pd.DataFrame
    columns: Sequence[Column] | None = None
    caption: str = ""

    def html(self) -> str:
        """The table as HTML, which scrolls sideways where it is wider than the page."""
        rows = self.rows.to_dict("records") if hasattr(self.rows, "to_dict") else self.rows
        columns = columns_of(rows) if self.columns is None else self.columns
        places = [' class="left"' if column.left else "" for column in columns]
        headings = [column.heading.replace("-\n", "") for column in columns]
        head = "".join(f"<th{p}>{escape(heading)}</th>" for p, heading in zip(places, headings, strict=True))
        body = "\n".join(
            "<tr>"
            + "".join(
                f"<td{place}>{escape(c.format(row.get(c.key)))}</td>" for place, c in zip(places, columns, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        caption = f"<p>{escape(self.caption)}</p>" if self.caption else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
        return f'<div class="scroll">{caption}{table}</div>'


Block: TypeAlias = "str | Table | Figure"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order: paragraphs (str), :class:`Table` and plotly figures.

    >>> cost = Section("Cost", ["Seconds a request.", Table([{"arm": "retrained", "seconds": 13.14}])])
    >>> write_page("report.html", "Unlearning", "One user leaves.", [cost])
    """

    heading: str
    blocks: Sequence[Block]


def write_page(path: str | Path, title: str, intro: str | Sequence[str], sections: Sequence[Section]) -> None:
    """Write a page: ``intro`` is a paragraph or a list of them; a figure's script is embedded once for all."""
    paragraphs = [intro] if isinstance(intro, str) else intro
    contents = ""
    if len(sections) >= CONTENTS_FROM:
        entries = (f'<li><a href="#s{i}">{escape(section.heading)}</a></li>' for i, section in enumerate(sections))
        contents = f"<nav><ul>{''.join(entries)}</ul></nav>"
    body = [
        f'<section id="s{i}"><h2>{escape(section.heading)}</h2>\n'
        + "\n".join(map(_html, section.blocks))
        + "</section>"
        for i, section in enumerate(sections)
    ]
    script = ""
    if any(not isinstance(block, (str, Table)) for section in sections for block in section.blocks):
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>"
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{STYLE}</style>{script}</head><body><main>
<h1>{escape(title)}</h1>
{"".join(map(_html, paragraphs))}
{contents}
{"".join(body)}
</main></body></html>
"""
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Table):
        return block.html()
    from plotly.io import to_html

    config = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "zoom2d", "resetScale2d"]]}
    figure_html: str = to_html(block, include_plotlyjs=False, full_html=False, config=config)
    return figure_html


def provenance_section(record: Mapping[str, Any]) -> Section:
    """The section that says where a record's figures come from: command, commit, machine, versions."""
    paragraphs = [f"Command: {record['command']}", f"Commit: {record['commit']}"]
    for facts in ("machine", "versions"):
        paragraphs.append(f"{facts.title()}: " + ", ".join(f"{key} {value}" for key, value in record[facts].items()))
    return Section("Where the figures come from", paragraphs)
