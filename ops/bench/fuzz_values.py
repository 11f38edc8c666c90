"""Values for fuzzed events, as JSON text: what producers send, and what nobody should.

As text and not as Python values, because JSON can say more than Python: numbers of any length, keys
that repeat, brackets without end.
"""

import json
from collections.abc import Mapping

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

# JSON text.
Raw = str

# Characters of a key that PostgreSQL's index no longer takes.
_LONG_ID = 6000

# More than a whole event may have.
_HUGE_BYTES = 2_000_000

# Letters of any kind, halves of UTF-16 pairs and NUL among them.
_LETTERS = st.text(st.characters(exclude_categories=()), max_size=12)

_NUMBERS = (
    "0",
    "-0",
    "1",
    "1.0",
    "2e0",
    "3",
    "-1",
    "1.5",
    "1e-7",
    "2147483647",
    "2147483648",
    "9223372036854775808",
    "1e300",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "-Infinity",
    "7" * 4000,
    "7" * 5000,
    "01",
    "+1",
    "0x1",
    "1_000",
    ".5",
)


def _one_of_words(words: str) -> SearchStrategy[str]:
    """Draw one of the words between the bars."""
    return st.sampled_from(words.split("|"))


_PLAIN = st.sampled_from(
    ["null", "true", "false", '""', "[]", "{}", "[null]", '[[""]]', "undefined"]
)


def _quoted(text: str) -> Raw:
    """Write a text as JSON, lone surrogates as escapes."""
    return json.dumps(text)


def _nested(depth: int) -> Raw:
    return "[" * depth + "]" * depth


_JUNK: SearchStrategy[Raw] = st.one_of(
    _PLAIN,
    st.sampled_from(_NUMBERS),
    _LETTERS.map(_quoted),
    st.integers().map(str),
    st.floats().map(json.dumps),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _LETTERS),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(_LETTERS, inner, max_size=3)
        ),
        max_leaves=6,
    ).map(json.dumps),
    st.sampled_from([20, 900, 1100, 100_000]).map(_nested),
)

_IDS: SearchStrategy[Raw] = st.one_of(
    st.sampled_from(
        [
            "x" * _LONG_ID,
            "ä" * 512,
            "x" * 512,
            "x" * 513,
            "a\x00b",
            "a\nb",
            "ends\n",
            "\x7f",
            "\x85",
            "\u202egpj.exe",
            "\u200b",
            "\u2028",
            "\ufeffa",
            " ",
            "..",
            "../../etc/passwd",
            "/etc/passwd",
            "C:\\CON",
            "%2e%2e%2fa",
            "a%00b",
            "a?b#c",
            "' OR 1=1 --",
            "{0}",
            "%s",
            "e\u0301",
            "\u00e9",
            "\U0001f469\u200d\U0001f680",
            "half \ud800",
            "\udfff",
        ]
    ).map(_quoted),
    _LETTERS.map(_quoted),
    # Each long one another: an index entry is compressed, but not so far.
    st.integers(0, 10**9).map(lambda number: _quoted(f"{number}-" * (_LONG_ID // 8))),
)

_URIS: SearchStrategy[Raw] = st.one_of(
    st.sampled_from(
        [
            "",
            "a.png",
            "/etc/passwd",
            "file:",
            "file://",
            "file:///",
            "file:///etc/passwd",
            "file:///proc/self/environ",
            "file:///dev/zero",
            "file:///dev/stdin",
            "file://elsewhere/a.png",
            "file:///a%00.png",
            "file:///%2e%2e/%2e%2e/etc/passwd",
            "FILE:///etc/passwd",
            "file:///" + "a" * 5000,
            "file:///" + "a/" * 3000,
            "s3://bucket/key",
            "s3://",
            "s3://../key",
            "s3://bucket/../../key",
            "http://127.0.0.1/",
            "https://127.0.0.1/",
            "https://user:password@localhost/a.png",
            "https://[::1]/",
            "https://[::1",
            "https://0x7f000001/",
            "https://\u2488\u2489.example/",
            "https://169.254.169.254/latest/meta-data/",
            "https://xn--a.example:99999/",
            "gopher://a/",
            "data:image/png;base64,iVBORw0KGgo=",
            "javascript:alert(1)",
            "ftp://a/b",
            "\\\\server\\share",
            "jar:file:///a!/b",
            "file:///a\x00b",
            "https://a/\r\nHost: b",
        ]
    ).map(_quoted),
    st.builds("{}:{}".format, st.sampled_from(["file", "s3", "https", "x"]), _LETTERS).map(_quoted),
)

_OFFSETS = _one_of_words(
    "Z|z||+00:00|-00:00|+14:00|+15:59|+16:00|-16:00|+23:59|-23:59|+24:00|+99:99|+0530|+05| +01:00"
    "|+05:30:15|[Europe/Berlin]| UTC"
)
_DAYS = _one_of_words(
    "0000-01-01|0001-01-01|0001-01-02|1582-10-10|1900-01-01|1969-12-31|2026-02-29|2026-02-30"
    "|2026-13-01|2026-06-30|9999-12-30|9999-12-31|10000-01-01|-0001-01-01|+002026-01-01|20260101"
    "|2026-W01-1|2026-001|２０２６-01-01|2026-1-1|2026/01/01|01.02.2026"
)
_CLOCKS = _one_of_words(
    "T00:00:00|T23:59:59|T23:59:60|T24:00:00|T25:00:00| 12:00:00|t12:00:00|T12:00:00.1"
    "|T12:00:00.123456789|T12:00:00,5|T120000|T12:00|T12||T"
)
_TIMES: SearchStrategy[Raw] = st.one_of(
    st.builds("{}{}{}".format, _DAYS, _CLOCKS, _OFFSETS).map(_quoted),
    st.sampled_from(
        ["yesterday", "1700000000", "0001-01-01T00:00:00Z", "Thu, 26 Nov 2026 16:31:00 GMT", "P1D"]
    ).map(_quoted),
    st.sampled_from(["1700000000", "1700000000000", "-62135596800", "1.5e9"]),
)

_CAPTIONS: SearchStrategy[Raw] = st.one_of(
    st.sampled_from(
        [
            '"one"',
            "[1]",
            "[null]",
            "[true]",
            "[NaN]",
            '["a", 2]',
            '[["a"]]',
            '["\\u0000"]',
            '["half \\ud800"]',
            '["\\u200b\\u200b"]',
            '["\\u202e\\u2066 turned"]',
            '[""]',
            '{"0": "a"}',
            json.dumps(["a"] * 10_000),
            json.dumps([""] * 100_000),
        ]
    ),
    st.lists(_LETTERS, max_size=5).map(json.dumps),
    # Rarely: each has megabytes.
    st.integers(0, 40).map(lambda number: _huge_captions() if number == 40 else "[]"),
)

# Any JSON text may stand in any field; these are the ones that come close to what is allowed.
_FIELDS: Mapping[str, SearchStrategy[Raw]] = {
    "image_id": _IDS,
    "uri": _URIS,
    "normalized_uri": _URIS,
    "version": st.sampled_from(_NUMBERS),
    "captions": _CAPTIONS,
    "test_captions": _CAPTIONS,
    "split": st.one_of(
        st.sampled_from(['"test"', '"a\\u0000"', '"\\udfff"']), _LETTERS.map(_quoted)
    ),
    "arrived_at": _TIMES,
    "published_at": _TIMES,
    "width": st.sampled_from(_NUMBERS),
    "height": st.sampled_from(_NUMBERS),
    "checksum": st.one_of(_LETTERS.map(_quoted), st.just(_quoted("0" * 64))),
}


def _huge_captions() -> Raw:
    return json.dumps(["x" * _HUGE_BYTES])


def values_of(name: str) -> SearchStrategy[Raw]:
    """Draw JSON text for a field: something like it, or anything."""
    choices = [_FIELDS.get(name, _JUNK), _JUNK]
    # Two in three come close: what is plainly wrong is refused by the first check.
    return st.sampled_from([0, 0, 1]).flatmap(choices.__getitem__)


def names() -> SearchStrategy[str]:
    """Draw the name of a field that no event has."""
    return st.one_of(
        st.sampled_from(["", "__proto__", "Image_Id", "image_id ", "$schema"]), _LETTERS
    )
