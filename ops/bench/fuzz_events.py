"""Fuzzed events: arrivals, deletions and accepted events, valid ones and mutations of them.

What an event says comes from a seeded generator, how it is mutated from Hypothesis. A mutation of
the id, of the key or of bytes is only done to an event whose id no other event has: the log keeps
the order of the events of one key, and which of two pictures of one version is the first one is a
matter of that order.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ops.bench.fuzz_values import Raw, names, values_of
from schemas.events import ACCEPTED, ARRIVED, DELETED
from stream.log.event_log import Message

# Events of one id on average: enough that versions, repetitions and deletions of one id meet.
_EVENTS_PER_ID = 12

# Versions of a well-behaved producer.
_VERSIONS = 4

# Bytes that a gzip bomb unpacks to.
_BOMB_BYTES = 20_000_000

_FIELDS_OF: Mapping[str, tuple[str, ...]] = {
    ARRIVED: ("image_id", "uri", "version", "captions", "test_captions", "split", "arrived_at"),
    DELETED: ("image_id", "version"),
    ACCEPTED: (
        "image_id",
        "uri",
        "normalized_uri",
        "checksum",
        "width",
        "height",
        "version",
        "captions",
        "arrived_at",
        "published_at",
    ),
}


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A good picture: where arrivals find it, and where accepted events do."""

    uri: str
    normalized_uri: str


@dataclass(frozen=True, slots=True)
class _Draft:
    """An event under construction."""

    topic: str
    key: str
    pairs: tuple[tuple[str, Raw], ...]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def payload(self) -> bytes:
        """Its JSON, in which a name may stand twice."""
        members = [f"{json.dumps(name)}:{raw}" for name, raw in self.pairs]
        return ("{" + ",".join(members) + "}").encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class _Mutation:
    """One change of an event."""

    kind: str
    name: str = ""
    """Of the field that it changes."""
    raw: Raw = ""
    """JSON text of the new value; for the kind `bytes` the name of a wrapping."""
    place: float = 0.0
    """Share of the payload, from 0 to 1."""
    noise: bytes = b""

    @property
    def needs_own_id(self) -> bool:
        """Whether other events of the same id could be read in another order."""
        if self.kind in ("set", "repeat", "drop"):
            return self.name in ("image_id", "version")
        return self.kind not in ("header", "add")


# The topic of an event and its mutations.
_Plan = tuple[str, tuple[_Mutation, ...]]

# Hypothesis takes a while for each example, whatever its size.
_PLANS_PER_EXAMPLE = 10


def fuzzed_messages(count: int, number: int, pictures: Sequence[StoredPicture]) -> list[Message]:
    """Make `count` events from seed `number`."""
    dice = Random(number)
    messages = []
    for place, plan in enumerate(_drawn(count, number)):
        messages.append(_message(dice, place, count, plan, pictures))
    return messages


def trace_of_number(number: int) -> str:
    """A trace parent by which all that an event leads to can be told."""
    return f"00-{number + 1:032x}-{number + 1:016x}-01"


def _drawn(count: int, number: int) -> list[_Plan]:
    """Draw the topic and the mutations of each event."""
    drawn: list[_Plan] = []

    @seed(number)
    @settings(
        max_examples=1 + count // _PLANS_PER_EXAMPLE,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(_plans(), min_size=_PLANS_PER_EXAMPLE, max_size=_PLANS_PER_EXAMPLE))
    def collect(plans: list[_Plan]) -> None:
        drawn.extend(plans)

    collect()
    return drawn[:count]


def _plans() -> SearchStrategy[_Plan]:
    # Weights by repetition, which `one_of` would drop: most events are arrivals.
    topics = [ARRIVED] * 7 + [DELETED] * 2 + [ACCEPTED]
    plans = {topic: _plans_of(topic) for topic in _FIELDS_OF}
    return st.sampled_from(topics).flatmap(plans.__getitem__)


def _plans_of(topic: str) -> SearchStrategy[_Plan]:
    one = _mutations(_FIELDS_OF[topic])
    # Half stays as it is: what good events come to is what matters.
    several = [st.just(()), st.tuples(one), st.tuples(one, one)]
    sizes = st.sampled_from([0, 0, 0, 1, 1, 2])
    return st.tuples(st.just(topic), sizes.flatmap(several.__getitem__))


def _mutations(fields: Sequence[str]) -> SearchStrategy[_Mutation]:
    kinds = st.sampled_from(["set", "set", "set", "repeat"])
    changed = [st.builds(_Mutation, kinds, st.just(name), values_of(name)) for name in fields]
    others = [
        st.sampled_from(fields).map(lambda name: _Mutation("drop", name)),
        st.builds(_Mutation, st.just("add"), names(), values_of("")),
        st.sampled_from(sorted(_HEADERS)).map(lambda name: _Mutation("header", name)),
        st.sampled_from(sorted(_WRAPPINGS)).map(lambda name: _Mutation("bytes", raw=name)),
        st.builds(
            _Mutation,
            st.sampled_from(["flip", "cut", "insert"]),
            place=st.floats(0, 1),
            noise=st.binary(min_size=1, max_size=4),
        ),
        st.text(max_size=40).map(lambda text: _Mutation("key", raw=text)),
    ]
    kinds_of_change = [st.one_of(changed), st.one_of(changed), *others]
    return st.sampled_from(range(len(kinds_of_change))).flatmap(kinds_of_change.__getitem__)


def _message(
    dice: Random,
    place: int,
    count: int,
    plan: _Plan,
    pictures: Sequence[StoredPicture],
) -> Message:
    topic, mutations = plan
    shared = f"image-{dice.randrange(max(1, count // _EVENTS_PER_ID))}"
    # Not a number only: a flipped bit must not make another event's id of it.
    own = f"single-{place}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}"
    is_alone = topic == ACCEPTED or dice.random() < 0.1
    if is_alone or any(mutation.needs_own_id for mutation in mutations):
        shared = own
    draft = _draft(dice, topic, shared, dice.choice(pictures), len(pictures))
    # Keys first: an id that is changed afterwards takes its key along.
    for mutation in sorted(mutations, key=lambda mutation: mutation.kind != "key"):
        draft = _mutated(draft, _apart(mutation, own) if topic == ACCEPTED else mutation)
    payload = draft.payload
    for mutation in mutations:
        payload = _damaged(payload, mutation)
    headers = {"traceparent": trace_of_number(place), **draft.headers}
    return Message(topic, draft.key, payload, headers)


def _draft(dice: Random, topic: str, image_id: str, picture: StoredPicture, count: int) -> _Draft:
    """A valid event."""
    version = dice.randint(1, _VERSIONS)
    pairs: dict[str, object] = {"image_id": image_id}
    if topic != DELETED or dice.random() < 0.7:
        pairs["version"] = version
    if topic == ARRIVED:
        pairs["uri"] = picture.uri
        if dice.random() < 0.1:
            pairs["uri"] = "file:///nowhere.png"
        if dice.random() < 0.5:
            pairs["captions"] = [f"picture {dice.randrange(count)}"]
    if topic == ACCEPTED:
        pairs |= {"uri": picture.uri, "normalized_uri": picture.normalized_uri}
        pairs |= {"checksum": hashlib.sha256(picture.uri.encode()).hexdigest()}
        pairs |= {"width": 12, "height": 12, "arrived_at": "2026-01-01T00:00:00+00:00"}
    return _Draft(
        topic, image_id, tuple((name, json.dumps(value)) for name, value in pairs.items())
    )


def _mutated(draft: _Draft, mutation: _Mutation) -> _Draft:
    """Change fields, key or headers."""
    pairs = draft.pairs
    key = draft.key
    headers = draft.headers
    without = tuple(pair for pair in pairs if pair[0] != mutation.name)
    match mutation.kind:
        case "set":
            pairs = (*without, (mutation.name, mutation.raw))
            key = _key_for(mutation, key)
        case "repeat" | "add":
            pairs = (*pairs, (mutation.name, mutation.raw))
            key = _key_for(mutation, key)
        case "drop":
            pairs = without
        case "key":
            key = _publishable(mutation.raw)
        case "header":
            headers = {**headers, **_HEADERS[mutation.name]}
    return _Draft(draft.topic, key, pairs, headers)


def _apart(mutation: _Mutation, own: str) -> _Mutation:
    """Keep the ids of accepted events apart from those of arrivals, which are read in any order."""
    if mutation.name != "image_id":
        return mutation
    try:
        value = json.loads(mutation.raw)
    except (ValueError, RecursionError):
        return mutation
    return replace(mutation, raw=json.dumps(value + own)) if isinstance(value, str) else mutation


def _key_for(mutation: _Mutation, key: str) -> str:
    """The key of an event whose id is changed: the id, as a producer's client would do."""
    if mutation.name != "image_id":
        return key
    try:
        value = json.loads(mutation.raw)
    except (ValueError, RecursionError):
        return key
    return _publishable(value) if isinstance(value, str) and value else key


def _publishable(text: str) -> str:
    """What the embedded log's own client can send as a key."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _damaged(payload: bytes, mutation: _Mutation) -> bytes:
    """Change bytes."""
    position = int(mutation.place * len(payload))
    match mutation.kind:
        case "bytes":
            return _wrapped(payload, mutation.raw)
        case "flip":
            flipped = bytearray(payload)
            for offset, byte in enumerate(mutation.noise):
                if position + offset < len(flipped):
                    flipped[position + offset] ^= byte
            return bytes(flipped)
        case "cut":
            return payload[:position]
        case "insert":
            return payload[:position] + mutation.noise + payload[position:]
    return payload


_HEADERS: Mapping[str, Mapping[str, str]] = {
    "content-encoding that lies": {"content-encoding": "gzip"},
    "unknown schema": {"schema-id": "999999", "ce_dataschema": "urn:none:7"},
    "another type": {"ce_type": "sigma.image_indexed.v9", "ce_specversion": "9.9"},
    "long": {"x-long": "x" * 50_000},
    "origin of a dead letter": {"__connect.errors.offset": "no number"},
    "letters": {"ümläut": "\u202e\U0001f600", "": ""},
}

# What a whole payload may be wrapped in or replaced by.
_WRAPPINGS = (
    "gzip",
    "gzip cut short",
    "gzip bomb",
    "schema registry",
    "byte order mark",
    "utf-16",
    "latin-1",
    "list",
    "text",
    "twice",
    "empty",
    "null",
    "zeros",
    "html",
    "line ends",
)


def _wrapped(payload: bytes, wrapping: str) -> bytes:
    match wrapping:
        case "gzip":
            return gzip.compress(payload, mtime=0)
        case "gzip cut short":
            return gzip.compress(payload, mtime=0)[:-9]
        case "gzip bomb":
            return gzip.compress(bytes(_BOMB_BYTES), mtime=0)
        case "schema registry":
            # Confluent's wire format: a zero, the schema's number, the record.
            return b"\0\0\0\0\7" + payload
        case "byte order mark":
            return b"\xef\xbb\xbf" + payload
        case "utf-16":
            return payload.decode("utf-8", "replace").encode("utf-16")
        case "latin-1":
            return b'{"image_id":"\xe4",' + payload[1:]
        case "list":
            return b"[" + payload + b"]"
        case "text":
            return json.dumps(payload.decode("utf-8", "replace")).encode()
        case "twice":
            return payload + payload
        case "zeros":
            return bytes(len(payload))
        case "html":
            return b"<html>502 Bad Gateway</html>"
        case "line ends":
            return b"\r\n " + payload + b"\n\n"
    return b"" if wrapping == "empty" else b"null"
