"""Hook of mkdocs: a mean and its spread stay on one line of a table's cell, also on a phone."""

from typing import Any


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """The page with unbreakable spaces around ± in the rows of its tables."""
    rows = (line.replace(" ± ", "\u00a0±\u00a0") if line.startswith("|") else line for line in markdown.split("\n"))
    return "\n".join(rows)
