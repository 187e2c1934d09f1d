"""``moeapps card``: the model card of a saved model."""

import argparse
from pathlib import Path

from moeapps.core.errors import ConfigError

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "write the model card of a saved model (Markdown, as on the Hugging Face hub)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="file of a saved model (.safetensors)")
    parser.add_argument("--output", metavar="FILE", help=".md file to write, such as README.md (default: print it)")
    parser.add_argument("--name", default="", help="headline (default: the name of the class)")
    parser.add_argument(
        "--score",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="score to show, such as accuracy=0.91; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Print or write the card."""
    scores = dict(_score(text) for text in options.score)
    if options.output is not None and Path(options.output).suffix != ".md":
        raise ConfigError(f"--output must be an .md file, got {options.output!r}")
    from moeapps.core.files import atomic_write
    from moeapps.core.saving import card_of_file

    card = card_of_file(options.model, scores, options.name)
    if options.output is None:
        print(card, end="")
        return 0
    with atomic_write(options.output) as file:
        file.write(card.encode())
    print(f"card: {options.output}")
    return 0


def _score(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name, float(value)
    except ValueError:
        raise ConfigError(f"--score must be METRIC=VALUE, such as accuracy=0.91, got {text!r}") from None
