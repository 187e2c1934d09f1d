"""Tables of a Markdown page, replaced by those that a script prints: a table is known by its row of headings.

python benchmarks/graph_accuracy.py --table | python benchmarks/page_tables.py docs/benchmarks/graphs.md
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["replaced", "write_tables"]


def tables_of(lines: list[str]) -> Iterator[tuple[int, int]]:
    """First and last line (excluded) of each table outside of code blocks."""
    start, code = None, False
    for i, line in enumerate([*lines, ""]):
        code ^= line.startswith("```")
        row = line.startswith("|") and not code
        if row and start is None:
            start = i
        elif not row and start is not None:
            yield start, i
            start = None


def heading(line: str) -> list[str]:
    """Cells of a table's first row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def replaced(page: str, printed: str) -> tuple[str, list[str]]:
    """A page with its tables replaced by the printed ones of the same headings.

    Parameters
    ----------
    page : str
        Markdown.
    printed : str
        Markdown with the new tables, in the order in which they stand on the page where several have one heading.

    Returns
    -------
    page : str
        With the new tables.
    unplaced : list of str
        Headings that stand on the page less often than they were printed.
    """
    lines, new = page.splitlines(), printed.splitlines()
    places = list(tables_of(lines))
    pairs: list[tuple[int, int, list[str]]] = []
    unplaced: list[str] = []
    for start, stop in tables_of(new):
        place = next((place for place in places if heading(lines[place[0]]) == heading(new[start])), None)
        if place is None:
            unplaced.append(new[start])
            continue
        places.remove(place)
        pairs.append((*place, new[start:stop]))
    for start, stop, rows in sorted(pairs, reverse=True):
        lines[start:stop] = rows
    return "\n".join(lines) + "\n", unplaced


def write_tables(paths: Iterable[Path], printed: str) -> None:
    """Replace the tables of the pages in files; SystemExit names what has no place on any of them."""
    missing: list[str] | None = None
    for path in paths:
        page, unplaced = replaced(path.read_text(), printed)
        path.write_text(page)
        missing = [heading for heading in unplaced if missing is None or heading in missing]
    if missing:
        names = " and ".join(str(path) for path in paths)
        raise SystemExit(f"no table with these headings in {names}: {'; '.join(missing)}")


if __name__ == "__main__":
    write_tables([Path(page) for page in sys.argv[1:]], sys.stdin.read())
