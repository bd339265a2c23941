"""Comments of other people's JSON are blanked; nothing else changes what a file says."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance.errors import DataError
from provenance.marks.foreign.comments import blank_comments
from provenance.marks.foreign.reading import read_configuration
from provenance.storage.files import parse_json

COMMENTED = """{ // KGW
  /* two
     lines */ "gamma": 0.5, # a share
  "path": "a//b#c/*d*/", "quote": "\\"//\\" \\\\", # "not": "a field"
  "hash_key": 15485863 /**/
} // end"""


def test_comments_of_all_three_kinds_are_read_over_and_strings_are_left_alone():
    found = parse_json(blank_comments(COMMENTED), "config")
    assert found == {
        "gamma": 0.5,
        "path": "a//b#c/*d*/",
        "quote": '"//" \\',
        "hash_key": 15485863,
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1} /* open',
        '{"a": 1 /*/ }',
        '{"a": "open // }',
        '{"a": 1, /* x */ "a": 2}',
        '{"a": NaN} // no number',
        '{"a": 1,} // trailing comma',
        "{'a': 1} # single quotes",
        "{a: 1} # bare name",
        '{"a": 0x10} // hexadecimal',
        "// nothing",
        '{"a": 1} / 2',
        '{"a": "\\ud800"} // lone surrogate',
        "[" * 100_000 + "// deep",
    ],
)
def test_what_is_no_strict_json_but_for_comments_is_refused(text):
    with pytest.raises(DataError) as caught:
        parse_json(blank_comments(text), "config")
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_without_comments_stays_as_it_is(value):
    text = json.dumps(value, ensure_ascii=False)
    assert blank_comments(text) == text


@given(JSON, st.lists(st.sampled_from(["// x\n", '# "y"\n', '/* {[" */', " ", "/**/"]), min_size=1))
def test_comments_around_json_change_nothing(value, comments):
    before = "".join(comments)
    text = f"{before}{json.dumps(value)}{before}"
    blanked = blank_comments(text)
    assert json.loads(blanked) == value
    assert len(blanked) == len(text)
    assert blanked.count("\n") == text.count("\n")


@pytest.mark.parametrize("piece", ["/*", '"', '"\\', "#", "/", "/**/", '"a\n', '/* */ " '])
def test_hostile_text_takes_linear_time(piece):
    """256 KiB; quadratic scanning would take minutes."""
    started = time.perf_counter()
    blank_comments(piece * ((1 << 18) // len(piece)))
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"[1] // list", "an array"),
        (b'"text"', "a string"),
        (b"7", "a number"),
        (b"null", "null"),
        (b"true", "true or false"),
    ],
)
def test_a_configuration_must_be_an_object(tmp_path, content, kind):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"got {kind}"):
        read_configuration(path)


def test_a_configuration_is_utf8_and_of_bounded_size(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="UTF-8"):
        read_configuration(path)
    path.write_bytes(b'{"a": "' + b"x" * (1 << 23) + b'"}')
    with pytest.raises(DataError, match="at most"):
        read_configuration(path)
