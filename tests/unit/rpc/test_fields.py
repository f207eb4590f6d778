from __future__ import annotations

import sys
import unicodedata

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from acclimate_service.domain.errors import InvalidSpec
from acclimate_service.rpc import fields

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text("abc é\N{SNOWMAN}", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=8,
)


@pytest.mark.parametrize(
    "value", ["a\nb", "a\rb", "a\x00b", "\x1b[31mred", "a\u2028b", "a\u202eb", "\x85"]
)
def test_a_line_of_text_has_no_character_that_could_forge_another(value: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        fields.text("label", value, limit=100)
    assert caught.value.metadata["field"] == "label"


@pytest.mark.parametrize("value", ["", "straße", "日本語 no. 5", "a/b?c=d", "🙂"])
def test_a_plain_line_passes_as_it_is(value: str) -> None:
    assert fields.text("label", value, limit=100) == value


@pytest.mark.parametrize(
    "values", [["a", "a"], ["a", ""], ["a", " b"], ["a", "b "], ["a", "b\n"], ["x" * 201]]
)
def test_labels_are_distinct_plain_and_not_empty(values: list[str]) -> None:
    with pytest.raises(InvalidSpec, match="labels"):
        fields.labels("labels", values)


def test_a_huge_label_set_is_refused_by_its_length() -> None:
    with pytest.raises(InvalidSpec, match="at most 10000"):
        fields.labels("labels", [str(number) for number in range(10_001)])


@pytest.mark.parametrize("value", ["", "-a", "a b", "a/../b", "a:b", "x" * 101, "a\n"])
def test_a_request_id_of_another_form_is_refused(value: str) -> None:
    with pytest.raises(InvalidSpec, match="request_id"):
        fields.request_id(value, required=True)


@given(st.dictionaries(st.text("abc", max_size=3), JSON, max_size=4))
def test_json_survives_a_struct(values: dict[str, object]) -> None:
    assert fields.json_of("facts", fields.struct_of(values)) == values  # type: ignore[arg-type]


def test_whole_numbers_come_out_of_a_struct_as_ints() -> None:
    struct = fields.struct_of({"minimum": 30, "share": 0.5})
    found = fields.json_of("overrides", struct)
    assert isinstance(found["minimum"], int)
    assert isinstance(found["share"], float)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_struct_with_a_number_that_is_none_is_refused(number: float) -> None:
    struct = struct_pb2.Struct()
    struct["limit"] = number
    with pytest.raises(InvalidSpec, match="finite"):
        fields.json_of("overrides", struct)


def test_nan_is_written_as_null() -> None:
    written = fields.struct_of({"a": float("nan"), "b": [float("inf")]})
    assert fields.json_of("facts", written) == {"a": None, "b": [None]}


def test_a_struct_that_nests_too_deeply_is_refused() -> None:
    struct = struct_pb2.Struct()
    inner = struct
    for _ in range(20):
        inner = inner.get_or_create_struct("a")
    with pytest.raises(InvalidSpec, match="too deep"):
        fields.json_of("overrides", struct)


def test_what_is_no_plain_line_is_what_unicode_calls_so_and_nothing_else() -> None:
    bidi = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        plain = unicodedata.category(character) not in ("Cc", "Zl", "Zp", "Cs")
        assert (fields._NOT_PLAIN.search(character) is None) == (plain and character not in bidi)
