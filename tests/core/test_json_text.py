"""JSON that people read."""

import json

import pytest

from moeapps.core.json_text import json_bytes, json_text


def test_letters_of_every_language_stand_as_they_are():
    assert json_text({"größe": "Łódź 東京"}) == '{"größe": "Łódź 東京"}'
    assert json_bytes(["ü"]) == '["ü"]'.encode()


@pytest.mark.parametrize(
    "content", ["\x85", "a\u2028b", "\u2029ü", "\n\r\x0b\x0c\x1c", "\\u2028 ü", "\ud800", "ü\udfff"]
)
def test_a_line_stays_one_line_and_is_read_back_as_it_was(content):
    text = json_text({"x": content})
    assert len(text.splitlines()) == 1
    assert json.loads(text.encode()) == {"x": content}


def test_options_are_those_of_json():
    assert json_text({"ü": 1}, indent=1, separators=(",", ":")) == '{\n "ü":1\n}'
    with pytest.raises(ValueError, match="Out of range"):
        json_text(["ü", float("nan")], allow_nan=False)
