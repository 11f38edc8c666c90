"""One call with all its tries, without a connection."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest
from sigma_stream_client import (
    AccessError,
    Client,
    GoneError,
    NotFoundError,
    RefusedError,
    RetryPolicy,
    UnavailableError,
    operations,
)
from sigma_stream_client.exchange import Outcome, Pause, exchange
from sigma_stream_client.operations import Call, Reply

CALL = Call("GET", "/v1/images")

QUICK = RetryPolicy(total_s=1000)


def refusal(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"error": "one sentence"}, headers=headers)


def played(
    outcomes: list[Outcome], retry: RetryPolicy = QUICK, call: Call = CALL
) -> tuple[Reply, list[float]]:
    """The reply of a call whose tries end so, and the pauses between them."""
    tries = exchange(call, retry)
    pauses = []
    step = next(tries)
    waiting = list(outcomes)
    try:
        while True:
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                step = tries.send(None)
            else:
                step = tries.send(waiting.pop(0))
    except StopIteration as end:
        assert waiting == []
        return end.value, pauses


def test_a_call_is_tried_until_it_is_answered() -> None:
    lost: list[Outcome] = [httpx.ConnectError("refused"), httpx.ReadError("reset")]
    answer = httpx.Response(202, json={"a": 1})
    reply, pauses = played([*lost, refusal(503), refusal(429), refusal(502), answer])
    assert reply == Reply(202, {"a": 1})
    assert len(pauses) == 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefusedError),
        (401, AccessError),
        (403, AccessError),
        (404, NotFoundError),
        (409, RefusedError),
        (410, GoneError),
        (422, RefusedError),
        (500, UnavailableError),
    ],
)
def test_what_no_further_try_mends_is_an_error_at_once(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="one sentence") as caught:
        played([refusal(status)])
    assert type(caught.value) is kind
    assert caught.value.status == status  # type: ignore[attr-defined]


def test_what_cannot_be_sent_is_not_tried_again() -> None:
    for outcome in (httpx.UnsupportedProtocol("no scheme."), httpx.LocalProtocolError("header.")):
        with pytest.raises(RefusedError, match="cannot be sent"):
            played([outcome])
    with pytest.raises(RefusedError, match="cannot be sent"):
        Client("no address", retry=QUICK).search("a")
    for key in ("a\nb", "schlüssel"):
        with pytest.raises(RefusedError, match="the key must be"):
            Client("http://127.0.0.1:1", key)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda client: client.get(""), "must not be empty"),
        (lambda client: client.delete(".."), "must not be empty, . or .."),
        (lambda client: client.get("a\ud800"), "must be Unicode"),
        (lambda client: client.put("a", "beach.jpg"), "its bytes or a pathlib.Path to it, got str"),
        (lambda client: client.put("a", b"", captions="a text"), "got the text 'a text'"),
        (lambda client: client.put_address("a", "file:///a", captions="b"), "got the text"),
        (lambda client: client.put("a", b"", metadata={"at": datetime.now(UTC)}), "metadata must"),
        (lambda client: client.search_picture(b"", filter={"field": {1}}), "filter must be what"),
        (lambda client: client.search("a", filter={"field": {1}}), "cannot be written"),
        (lambda client: client.search("a", min_relevance=float("nan")), "cannot be written"),
        (lambda client: client.search("\ud800"), "cannot be written"),
    ],
)
def test_what_is_wrong_from_the_start_is_one_sentence_and_not_sent(
    ask: Callable[[Client], object], sentence: str
) -> None:
    # Nobody listens there: whatever is sent would end as unavailable.
    with (
        Client("http://127.0.0.1:1", retry=RetryPolicy(total_s=0)) as client,
        pytest.raises(RefusedError, match=re.escape(sentence)),
    ):
        ask(client)


def test_an_answer_of_somebody_else_is_an_error_too() -> None:
    with pytest.raises(RefusedError, match="status 418 and no reason"):
        played([httpx.Response(418, text="<html>")])


def test_the_policy_ends_with_the_last_reason() -> None:
    with pytest.raises(UnavailableError, match=r"one sentence \(1 tries\)"):
        played([refusal(503)], RetryPolicy(total_s=0))
    with pytest.raises(UnavailableError, match="does not answer"):
        played([httpx.ConnectError("refused")], RetryPolicy(total_s=0))


def test_pauses_grow_are_drawn_and_have_a_longest() -> None:
    retry = RetryPolicy(first_s=0.1, longest_s=2.0)
    for tries, length in ((1, 0.1), (2, 0.2), (3, 0.4), (6, 2.0), (10_000, 2.0)):
        drawn = {retry.pause(tries, None) for _ in range(50)}
        assert len(drawn) > 10
        assert all(length / 2 <= pause <= length for pause in drawn)


def test_a_pause_is_at_least_what_the_service_asks_for() -> None:
    _, pauses = played([refusal(429, **{"retry-after": "7"}), httpx.Response(200, json={})])
    assert pauses[0] >= 7
    later = refusal(503, **{"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"})
    _, pauses = played([later, httpx.Response(200, json={})])
    assert pauses[0] <= 0.1


def test_a_refusal_that_a_call_expects_is_its_answer_at_once() -> None:
    asks = Call("GET", "/readyz", replies=frozenset({503}))
    reply, pauses = played([httpx.Response(503, json={"problem": "starting"})], call=asks)
    assert (reply.status, reply.document, pauses) == (503, {"problem": "starting"}, [])
    reply, pauses = played([refusal(502), httpx.Response(200, json={})], call=asks)
    assert (reply.status, len(pauses)) == (200, 1)


def test_an_answer_of_another_service_is_no_answer() -> None:
    with pytest.raises(UnavailableError, match="not of this service"):
        played([httpx.Response(200, text="<html>")])


@pytest.mark.parametrize(
    ("status", "document", "problem"),
    [
        (200, {"ready": True}, None),
        (503, {"ready": False, "problem": "no generation is live"}, "no generation is live"),
        (503, {"error": "no query worker answers"}, "no query worker answers"),
        (503, {}, "it does not say why"),
    ],
)
def test_a_problem_is_what_the_worker_or_its_proxy_says(
    status: int, document: dict[str, str], problem: str | None
) -> None:
    operation = operations.problem()
    assert next(operation).path == "/readyz"
    with pytest.raises(StopIteration) as ended:
        operation.send(Reply(status, document))
    assert ended.value.value == problem
