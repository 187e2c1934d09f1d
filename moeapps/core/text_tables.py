"""Tables as text, for pages and papers: Markdown, and LaTeX with booktabs."""

from collections.abc import Iterable, Sequence

__all__ = ["latex_table", "latex_text", "markdown_table"]

SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """A table in Markdown.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : iterable of sequences of str
        Cells. Bars are escaped, other Markdown is left as it is.
    numbers : bool, default=False
        Whether all columns but the first are aligned to the right.
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    lines = [_escaped(header), rule, *(_escaped(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(row: Sequence[str]) -> list[str]:
    return [cell.replace("|", r"\|") for cell in row]


def latex_table(header: Sequence[str], rows: Iterable[Sequence[str]], comments: Iterable[str] = ()) -> str:
    """A ``tabular`` for LaTeX, which needs the package booktabs; all columns but the first are aligned to the right.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : iterable of sequences of str
        Cells, in LaTeX already (:func:`latex_text`).
    comments : iterable of str, optional
        Lines above the table.
    """
    lines = [" & ".join(row) + r" \\" for row in [[latex_text(name) for name in header], *rows]]
    notes = [f"% {line}" for line in [*comments, r"needs \usepackage{booktabs}"]]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}"
    return "\n".join(
        [*notes, begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", ""]
    )


def latex_text(text: str) -> str:
    """Plain text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)
