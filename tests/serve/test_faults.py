import pytest
from pydantic import ValidationError

from moeapps.serve.faults import refuse_invalid
from moeapps.serve.schema import recommend_model

ABOUT = {"recommends": {"users": {"user": "category", "item_history": "list"}, "item": "item", "items": 96}}
ROW = {"user": "u7", "item_history": ["a"]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rows": [ROW], "K": 3}, "K: there is no such field; did you mean 'k'?"),
        ({"rows": [{**ROW, "exclud": ["b"]}]}, "rows.0.exclud: there is no such field; did you mean 'exclude'?"),
        ({"rows": [{**ROW, "zzz": 1}]}, "rows.0.zzz: there is no such field; expected {"),
        ({"rows": []}, "rows: must have at least 1 item, got 0"),
    ],
)
def test_a_field_that_a_request_cannot_have_is_compared_with_those_that_it_can(body, message):
    schema = recommend_model(ABOUT)
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in caught.value.errors()]
    refusal = refuse_invalid(errors, "application/json", '{"rows": ...}', schema)
    assert str(refusal).startswith(message)
