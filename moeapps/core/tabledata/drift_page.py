"""A :class:`~moeapps.core.tabledata.drift.DataCheck` as a page of HTML that needs nothing else."""

import math
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moeapps.core.tabledata.drift import DataCheck

__all__ = ["page"]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:72rem;padding:1.5rem;color:#1c1c1c;background:#fff}
h1{font-size:1.4rem;margin:0 0 .3rem}p{margin:.4rem 0}.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th{white-space:normal;vertical-align:bottom}th:nth-child(-n+4),td:nth-child(-n+4){text-align:left}
td:nth-child(3){white-space:normal;min-width:9rem}
.v{border-radius:.3rem;padding:.05rem .45rem;font-weight:600}
.ok{background:#e3f1e5;color:#1d5a2a}.unknown{background:#eee;color:#444}.shift{background:#fdf0cf;color:#6b4a00}
.drift,.unreadable,.absent{background:#fbdfdc;color:#8a1c12}
small{color:#555}dt{font-weight:600;margin-top:.5rem}dd{margin:0}
@media (prefers-color-scheme:dark){body{background:#161616;color:#eaeaea}th,td{border-color:#3a3a3a}small{color:#aaa}}
"""

_HEADS = {
    "verdict": "verdict",
    "why": "why",
    "kind": "kind",
    "psi": "PSI",
    "psi_noise": "PSI by chance",
    "missing_training": "missing in training",
    "missing_now": "missing now",
    "unseen": "unseen categories",
    "outside": "outside the range",
}

_NOTES = {
    "PSI": "Population stability index: 0 if the values are distributed as in training, 0.1 a shift, 0.25 a drift.",
    "PSI by chance": "What the index would be on average if nothing had changed, with so many rows. A verdict needs an "
    "index that chance exceeds once in a thousand columns.",
    "unseen categories, outside the range": "Share of the values that training had not, or that lie below its "
    "smallest or above its largest number.",
}


def page(check: "DataCheck") -> str:
    """The page.

    Parameters
    ----------
    check : DataCheck
        What was found.
    """
    order = check.table.assign(bad=[-_rank(verdict) for verdict in check.table["verdict"]])
    rows = order.sort_values("bad", kind="stable")  # the worst first
    body = "".join(
        f"<tr><td>{escape(str(name))}</td>{''.join(_cell(key, row[key]) for key in _HEADS)}</tr>"
        for name, row in rows.iterrows()
    )
    heads = "".join(f"<th>{head}</th>" for head in ("column", *_HEADS.values()))
    extra = f"<p>Not in training: {escape(', '.join(check.extra))}</p>" if check.extra else ""
    notes = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in _NOTES.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Data check</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Data check: {_badge(check.verdict)}</h1>"
        f"<p>{escape(check.summary())}</p>{extra}"
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<small><dl>{notes}</dl></small></body></html>\n"
    )


def _rank(verdict: str) -> int:
    return ["ok", "unknown", "shift", "drift", "unreadable", "absent"].index(verdict)


def _badge(verdict: str) -> str:
    return f'<span class="v {verdict}">{verdict}</span>'


def _cell(key: str, value: Any) -> str:
    if key == "verdict":
        return f"<td>{_badge(value)}</td>"
    if isinstance(value, float):
        text = "" if math.isnan(value) else f"{value:.3f}" if key.startswith("psi") else f"{value:.1%}"
        return f"<td>{text}</td>"
    return f"<td>{escape(str(value))}</td>"
