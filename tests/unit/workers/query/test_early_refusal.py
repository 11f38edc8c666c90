"""Early refusals: which bytes are a query, and how many queries are let in."""

import pytest

from workers.query.early_refusal import EarlyRefusal, query_length, raw_headers
from workers.query.refusals import OVERLOADED
from workers.runtime.refusal import RawHeaders, Refusal

BODY = b'{"query": "red"}'
HEAD = b"POST /v1/query HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY)


class Refusals:
    """An early refusal with a line that can be filled."""

    def __init__(self, most: int = 3) -> None:
        self.full = False
        self.counted = 0
        self.early = EarlyRefusal(
            lambda: self.full, lambda: most, lambda _: self.may_ask, self._judge, self._count
        )
        self.may_ask = True
        self.judged: Refusal | None = None

    def answers(self, name: str, data: bytes = HEAD + BODY) -> tuple[int, int] | None:
        """Status and missing bytes of the answer on a connection; None if the bytes are let in."""
        early = self.early.answer(name, data)
        return early and (int(early.answer[9:12]), early.missing_bytes)

    def _judge(self, headers: RawHeaders) -> Refusal | None:
        assert headers == [(b"host", b"x"), (b"content-length", b"16")]
        return self.judged

    def _count(self) -> None:
        self.counted += 1


def test_a_query_is_known_by_its_head_whatever_came_of_its_body() -> None:
    for received in (HEAD, HEAD + BODY[:3], HEAD + BODY):
        assert query_length(received) == len(HEAD + BODY)


@pytest.mark.parametrize(
    "received",
    [
        b"",
        HEAD[:-1],
        b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        HEAD.replace(b"/v1/query", b"/v1/query2"),
        HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HEAD.replace(b"Content-Length: 16", b"Transfer-Encoding: chunked"),
        HEAD.replace(b"Host: x", b"Transfer-Encoding: chunked"),
        HEAD.replace(b"Host: x", b"content-length: 3"),
        HEAD.replace(b"Host: x", b"X: y\nContent-Length : 3"),
        HEAD.replace(b"Host: x", b"Expect: 100-continue"),
        HEAD.replace(b"Host: x", b"Connection: Upgrade"),
        HEAD.replace(b"Host: x", b"Connection: Close"),
        HEAD.replace(b": 16", b": -16"),
        HEAD.replace(b": 16", b": 1_6"),
        HEAD.replace(b": 16", b": 65537"),
        HEAD.replace(b": 16", b": 999999999999"),
    ],
)
def test_everything_unusual_is_left_to_those_who_know_all_of_http(received: bytes) -> None:
    assert query_length(received) is None


def test_while_the_line_is_full_a_query_is_refused_and_counted_and_its_body_waited_for() -> None:
    refusals = Refusals()
    assert refusals.answers("a") is None
    refusals.full = True
    assert refusals.answers("b") == (429, 0)
    assert refusals.answers("c", HEAD) == (429, len(BODY))
    assert refusals.answers("d", HEAD + BODY + HEAD) is None
    assert refusals.answers("e", b"GET /metrics HTTP/1.1\r\n\r\n") is None
    assert refusals.counted == 2


def test_host_and_key_are_judged_before_the_line() -> None:
    refusals = Refusals()
    refusals.full = True
    refusals.judged = Refusal(401, "a key is needed here", (("www-authenticate", "Bearer"),))
    assert refusals.answers("a") == (401, 0)
    assert refusals.counted == 0


def test_queries_that_come_before_any_of_them_is_in_line_are_not_all_let_in() -> None:
    refusals = Refusals(most=3)
    let_in = [name for name in "abcdefgh" if refusals.answers(name) is None]
    assert let_in == ["a", "b", "c"]
    refusals.early.end("b")
    assert refusals.answers("i") is None
    assert refusals.answers("j") == (429, 0)


def test_heads_without_a_body_take_no_place() -> None:
    refusals = Refusals(most=1)
    for name in "abc":
        assert refusals.answers(name, HEAD) is None
    assert refusals.answers("d") is None


def test_headers_are_read_as_their_receivers_compare_them() -> None:
    head = b"POST /v1/query HTTP/1.1\r\nHost:  a:80 \r\nAUTHORIZATION:Bearer x:y\r\n\r\n: body"
    assert raw_headers(head) == [(b"host", b"a:80"), (b"authorization", b"Bearer x:y")]


def test_the_answer_is_whole_and_says_when_to_come_again() -> None:
    head, _, body = OVERLOADED.to_http().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nretry-after: 1" in head
    assert b"\r\ncontent-length: %d\r\n" % len(body) in head


def test_queries_that_may_not_be_asked_take_no_place_from_others() -> None:
    refusals = Refusals(most=1)
    refusals.may_ask = False
    assert refusals.answers("a") is None
    assert refusals.answers("b") is None
    refusals.may_ask = True
    assert refusals.answers("c") is None
    assert refusals.answers("d") == (429, 0)
