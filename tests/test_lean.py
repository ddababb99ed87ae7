"""minirt.lean: json's and contextlib's stand-ins agree with the originals (a property test, and by hand)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirt import lean

TOP = Path(__file__).parent.parent
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_what_json_writes_and_reads_so_do_we(value: object) -> None:
    text = json.dumps(value)
    assert lean.dumps(value) == text
    assert lean.loads(text) == value and lean.loads(text.encode()) == value
    assert lean.loads(json.dumps(value, indent=2, ensure_ascii=False).encode() + b" \n") == value


@given(st.text(alphabet='{}[]",:0123456789.eE+-truefalsnul\\ \n\t\x00é'))
def test_any_text_is_read_or_refused_as_json_does(text: str) -> None:
    try:
        wanted = json.loads(text)
    except ValueError as error:
        with pytest.raises(ValueError) as refused:
            lean.loads(text)
        assert str(refused.value) == str(error) or text != text.strip(" \t\n\r")  # then it counts from elsewhere
    else:
        found = lean.loads(text)
        assert found == wanted and type(found) is type(wanted)


def test_what_is_no_json_is_refused() -> None:
    for data in (b"\xff", b"{", b'"\n"', b"1 2", b""):
        with pytest.raises(ValueError):
            lean.loads(data)
    with pytest.raises(TypeError, match="set is not JSON serializable"):
        lean.dumps({"a": set()})


def test_it_is_the_one_in_c_and_loads_no_json() -> None:
    """And it refuses with json's own error where json was not loaded before."""
    code = """
import sys
from minirt.lean import dumps, loads
assert loads(dumps({"a": [1, 2.5, "\\u00e9"]})) == {"a": [1, 2.5, "\\u00e9"]}
assert "json" not in sys.modules and "re" not in sys.modules
try:
    loads('"\\n"')
except ValueError as error:
    print(type(error).__name__)
"""
    found = subprocess.run([sys.executable, "-S", "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("JSONDecodeError\n", "")


@pytest.mark.parametrize("lacks", ["sys.modules['_json'] = None", "import _json; _json.make_encoder = lambda: 0"])
def test_where_python_has_another_json_that_one_is_used(lacks: str) -> None:
    code = f"import sys; {lacks}; from minirt.lean import dumps, loads; print(dumps.__module__, loads('[1]'))"
    found = subprocess.run([sys.executable, "-S", "-c", code], cwd=TOP, capture_output=True, text=True, check=False)
    assert (found.stdout, found.stderr) == ("json [1]\n", "")


def test_suppress() -> None:
    with lean.suppress(KeyError, OSError):
        raise FileNotFoundError
    with pytest.raises(ValueError), lean.suppress(KeyError):
        raise ValueError
    with lean.suppress(KeyError):
        pass
