"""Settings of librdkafka, as its tools take them: files of ``key=value`` lines, and single ``key=value`` arguments."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moeapps.core.errors import ConfigError
from moeapps.core.files import existing_file

__all__ = ["OWN", "read_kafka_config", "without_secrets"]

OWN = {
    "bootstrap.servers": "the address kafka://host:port/topic names the brokers",
    "enable.auto.commit": "the offsets are in the checkpoint",
    "enable.auto.offset.store": "the offsets are in the checkpoint",
    "auto.offset.reset": "--on-gap says what to do",
    "enable.partition.eof": "?stop=end of the address says whether the run ends",
    "group.id": "?group=NAME of the address names the group",
}
"""Settings that moeapps has to make itself, and what takes their place."""


def read_kafka_config(arguments: Iterable[str], option: str = "--kafka-config") -> dict[str, str]:
    """Settings from files and ``key=value`` arguments; later ones replace earlier ones.

    A file has one ``key=value`` per line; empty lines, and those that begin with ``#``, are left out. No message shows
    a value, which may be a password.

    Parameters
    ----------
    arguments : iterable of str
        Each is the name of a file, or ``key=value``.
    option : str
        Where the user wrote them, for messages.

    Raises
    ------
    ConfigError
        If a line is of another form, or a setting is one that moeapps makes itself.
    FileNotFoundError
        If there is no such file.
    """
    settings: dict[str, str] = {}
    for argument in arguments:
        if "=" in argument and not Path(argument).exists():
            settings |= _setting(argument, f"{option} {argument.partition('=')[0]}=...")
            continue
        path = existing_file(argument, f"settings of Kafka ({option}: a file, or key=value)")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(f"{option} {argument} is not a text file in UTF-8") from None
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                settings |= _setting(line, f"{option} {argument}, line {number}")
    return settings


def _setting(text: str, where: str) -> dict[str, str]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key or any(letter.isspace() for letter in key):
        raise ConfigError(f"{where}: expected key=value, such as security.protocol=SASL_SSL, with librdkafka's names")
    if key in OWN:
        raise ConfigError(f"{where}: {key} cannot be set, {OWN[key]}")
    return {key: value.strip()}


def without_secrets(message: str, settings: Mapping[str, Any]) -> str:
    """An error text of librdkafka's without the values of settings, of which one may be a password."""
    for value in sorted({str(value) for value in settings.values()}, key=len, reverse=True):
        if len(value) > 3:
            message = message.replace(value, "...")
    return message
