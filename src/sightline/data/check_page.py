"""What a check of data found -> one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from sightline.data.checked import Checked, Found, GoodRow, by_kind, common_sizes, histogram
from sightline.data.verdict import KINDS
from sightline.errors import DataError
from sightline.page.charts import figure, histogram_chart
from sightline.page.numbers import counted
from sightline.page.page import facts_list, section, write_page
from sightline.page.pictures import open_picture, picture_svg
from sightline.types import ImageRef

SIDE = 320
"""Pixels on the longer side of a picture on the page."""

MOST = 10_000
"""So many rows of a kind are on the page, which a browser still opens; the file beside it has all of them."""


def write_check_page(checked: Checked, path: Path, findings: str) -> Path:
    """Write the page; `findings` is the name of the file that lists all findings."""
    others = [one for one in checked.found if not one.finding.bad]
    return write_page(
        path,
        f"Check of {checked.title}",
        [
            facts_list(_head(checked), "facts head"),
            facts_list(checked.settings),
            section("Rows that cannot be used", _groups(checked.bad, findings)),
            section("Worth knowing", _groups(others, findings)),
            section("Sets", _sets(checked)),
            section("Histograms", _histograms(checked)),
            section("The longest rows", _longest(checked)),
            section("Some rows as the model sees them", _sample(checked.sample)),
        ],
    )


def _head(checked: Checked) -> dict[str, str]:
    facts = {"rows": sum(one.rows for one in checked.sets), "cannot be used": checked.bad_rows}
    used = sum(one.used for one in checked.sets)
    if used != facts["rows"] - checked.bad_rows:
        facts["samples an epoch"] = used
    facts["images"] = sum(one.images for one in checked.sets)
    if checked.tokens.size:
        facts["tokens"] = sum(one.tokens for one in checked.sets)
        facts["targets"] = sum(one.targets for one in checked.sets)
    return {name: f"{number:,}" for name, number in facts.items()}


def _groups(found: Sequence[Found], findings: str) -> str:
    return "".join(_group(kind, ones, findings) for kind, ones in by_kind(found).items())


def _group(kind: str, ones: Sequence[Found], findings: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.file)}</td><td>{one.row}</td><td>{escape(_reason(one))}</td></tr>" for one in ones[:MOST]
    )
    rest = len(ones) - MOST
    more = f'<p class="note">{rest:,} more of this kind are in {escape(findings)}.</p>' if rest > 0 else ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("file", "row", "reason"))
    return (
        f'<details class="kind"><summary>{escape(KINDS[kind].title)} <small>{counted(len(ones), "row")}</small>'
        "</summary>"
        f'<p class="remedy">{escape(_sentence(KINDS[kind].remedy))}</p>'
        f'<div class="scroll"><table class="found"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        f"{more}</details>"
    )


def _reason(one: Found) -> str:
    finding = one.finding
    return f"{finding.reason} ({counted(finding.rows, 'row')})" if finding.rows > 1 else finding.reason


def _sets(checked: Checked) -> str:
    totals = {key: max(sum(getattr(one, key) for one in checked.sets), 1) for key in ("used", "tokens")}
    with_tokens = bool(checked.tokens.size)
    names = ["set", "rows", "cannot be used", "samples an epoch", "images", *(["tokens", "targets"] * with_tokens)]
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = ""
    for one in checked.sets:
        cells = [f"{one.rows:,}", f"{one.bad:,}", _share(one.used, totals["used"]), f"{one.images:,}"]
        if with_tokens:
            cells += [_share(one.tokens, totals["tokens"]), f"{one.targets:,}"]
        body += f'<tr><th scope="row">{escape(one.name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _share(count: int, total: int) -> str:
    share = f"{count / total:.1%}"
    return f'{count:,} <small>{share}</small><span class="meter"><i style="width:{share}"></i></span>'


def _histograms(checked: Checked) -> str:
    sides = checked.sizes.max(axis=1) if len(checked.sizes) else checked.sizes[:, 0]
    common = ", ".join(f"{size} px: {count:,}" for size, count in common_sizes(checked.sizes))
    charts = [
        _histogram("Tokens of a row", checked.tokens, "tokens"),
        _histogram("Targets of a row", checked.targets, "targets"),
        _histogram("Images of a row", checked.images, "images"),
        _histogram("Sizes of the images", sides, "longer side in pixels", f"The most frequent: {common}"),
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _histogram(name: str, values: np.ndarray, x_name: str, caption: str = "") -> str:
    return figure(name, histogram_chart(histogram(values), name=name, x_name=x_name), escape(caption))


def _longest(checked: Checked) -> str:
    if not checked.longest:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("row", "tokens", "targets", "images"))
    body = "".join(
        f'<tr><th scope="row">{escape(one.origin)}</th><td>{one.tokens:,}</td><td>{one.targets:,}</td>'
        f"<td>{one.images:,}</td></tr>"
        for one in checked.longest
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _sample(rows: Sequence[GoodRow]) -> str:
    if not rows:
        return ""
    note = '<p class="note"><span class="target">What the model learns to say</span> is marked.</p>'
    return f'{note}<div class="samples">{"".join(_row(row) for row in rows)}</div>'


def _row(row: GoodRow) -> str:
    pictures = "".join(map(_picture, row.images))
    text = "".join(f'<span class="{paint}">{escape(text)}</span>' for text, paint in row.pieces)
    counts = f"{counted(row.tokens, 'token')}, {counted(row.targets, 'target')}" if row.tokens else ""
    return (
        '<figure class="sample">'
        + (f'<div class="pictures">{pictures}</div>' if pictures else "")
        + f'<p class="prompt">{text}</p>'
        + f'<p class="verdict"><span>{escape(row.origin)}</span><span>{counts}</span></p></figure>'
    )


def _picture(image: ImageRef) -> str:
    try:
        return picture_svg(open_picture(image), largest=SIDE)
    except DataError as error:
        # Its header was fine when the rows were looked at.
        return f'<p class="wrong">{escape(str(error))}</p>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
