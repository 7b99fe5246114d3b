"""Messages that end up in evidence/parity.json."""

import math

import pytest
from pydantic import TypeAdapter, ValidationError

from packager.export.graph.messages import StageRecord

ADAPTER = TypeAdapter(StageRecord)
RECORD = StageRecord("optimize", False, "fail", "", 5, 4, 100, 90, None)


@pytest.mark.parametrize(
    ("error", "text"), [(0.5, "0.5"), (None, "null"), (math.inf, '"Infinity"'), (math.nan, '"NaN"')]
)
def test_an_error_that_json_lacks_a_number_for_is_written_as_a_string_and_read_back(error, text):
    record = StageRecord("optimize", False, "fail", "", 5, 4, 100, 90, error)
    written = ADAPTER.dump_json(record)
    assert f'"max_abs":{text}}}' in written.decode()
    assert repr(ADAPTER.validate_json(written)) == repr(record)


def test_a_record_with_a_field_that_the_schema_lacks_is_refused():
    written = ADAPTER.dump_json(RECORD).replace(b'"name"', b'"more":1,"name"')
    with pytest.raises(ValidationError, match="more"):
        ADAPTER.validate_json(written)
