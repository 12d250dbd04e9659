"""Messages between examiner and worker: what is sent arrives, and what is no message is refused."""

import contextlib
import json
import socket
import struct
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attncourse.checks.script import Call, Construct, Failure, Load, Outcome, Reply, Result, Script
from attncourse.grading import wire


@pytest.fixture
def channel():
    """Both ends of a channel."""
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.fixture
def through(channel):
    """through(message): the message as it arrives."""

    def send(message):
        wire.send(channel[0], message)
        return wire.receive(channel[1], time.monotonic() + 5)

    return send


def same(one, other):
    if isinstance(one, torch.Tensor):
        return type(other) is torch.Tensor and one.dtype == other.dtype and torch.equal(one.cpu(), other)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    return type(one) is type(other) and (vars(one) == vars(other) if hasattr(one, "__dict__") else one == other)


# --- round trips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", wire.DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 3, 4), (1, 1, 1)])
def test_every_dtype_and_shape(name, shape, through):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(wire.DTYPES[name])
    received = through(tensor)
    assert same(tensor, received) and received.shape == shape and received.stride() == tensor.stride()


def test_bytes_arrive_as_they_were(through):
    for tensor in (
        torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45]),
        torch.tensor([float("nan"), 65504.0, 6e-8], dtype=torch.float16),
        torch.tensor([-(2**63), 2**63 - 1]),
        torch.tensor([255, 0], dtype=torch.uint8),
    ):
        assert torch.equal(through(tensor).view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_empty_tensors(shape, through):
    received = through(torch.empty(shape, dtype=torch.int32))
    assert received.shape == shape and received.dtype == torch.int32


@pytest.mark.parametrize("axes", [(0, 2, 1), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_axes_in_another_order_stay_so(axes, through):
    tensor = torch.randn(2, 3, 4).permute(axes)
    received = through(tensor)
    assert torch.equal(received, tensor) and received.stride() == tensor.stride()


OVERLAPPING = {
    "expanded": lambda: torch.randn(3).expand(2, 3),
    "expanded in the last axis": lambda: torch.randn(2, 1).expand(2, 3),
    "one number everywhere": lambda: torch.randn(()).expand(2, 3, 4),
    "sliding windows": lambda: torch.arange(6.0).unfold(0, 3, 1),
    "every second": lambda: torch.arange(24.0).view(4, 6)[::2, ::3],
    "a column": lambda: torch.arange(12.0).view(3, 4)[:, 1],
    "as_strided": lambda: torch.arange(9.0).as_strided((2, 2, 2), (1, 3, 2)),
    "backwards": lambda: torch.arange(5.0).flip(0),
    "conjugate-free view": lambda: torch.randn(4, 4).T[1:, :2],
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_views_that_overlap_or_have_gaps_arrive_with_their_values(name, through):
    tensor = OVERLAPPING[name]()
    received = through(tensor)
    assert torch.equal(received, tensor)
    received += 1  # no two numbers share a place
    assert torch.equal(received, tensor + 1)


def test_what_hangs_on_a_tensor_is_left_behind(through):
    class Own(torch.Tensor):
        pass

    for tensor in (
        torch.randn(3, requires_grad=True),
        torch.randn(3).as_subclass(Own),
        torch.nn.Parameter(torch.ones(3)),
    ):
        received = through(tensor)
        assert type(received) is torch.Tensor and not received.requires_grad
        assert torch.equal(received, tensor.detach())


PLAIN = [
    *(None, True, False, 0, -1, 10**18, 1.5, float("inf"), "", "ä ✓ \x00 \ud7ff", [], (), {}),
    *([1, [2, (3, {"a": [None]})]], {"_": "tensor", "items": 3}, {"a": {"_": "dict"}}, ("_",)),
]


@pytest.mark.parametrize("value", PLAIN, ids=str)
def test_plain_values(value, through):
    assert same(value, through(value))


def test_text_that_no_terminal_can_show_is_made_so(through):
    assert through({"a": "x\ud800y"}) == {"a": "x?y"}


def test_scripts_replies_and_outcomes(through):
    x = torch.randn(2, 3)
    script = Script(
        "a script",
        (Construct({"n": 3}), Load({"weight": x}), Call({"x": x, "mask": None}, "step", ("x",))),
        "float64",
    )
    received = through({"do": "script", "script": script})["script"]
    assert (received.name, received.habit, len(received.steps)) == ("a script", "float64", 3)
    assert received.steps[0] == script.steps[0]
    assert torch.equal(received.steps[1].state["weight"], x)
    assert torch.equal(received.calls[0].arguments["x"], x)
    assert (received.calls[0].method, received.calls[0].gradients) == ("step", ("x",))
    failure = Failure("ValueError", "no", 3, "raise ValueError('no')")
    reply = through(Reply((Result("tuple", (x, x.bool()), {"x": None, "y": x}, {"x": x}),), failure))
    assert reply.failure == failure and reply.results[0].gradients["x"] is None
    assert torch.equal(reply.results[0].outputs[1], x.bool())
    assert through([Outcome(True), Outcome(False, failure)]) == [Outcome(True), Outcome(False, failure)]


def test_many_messages_keep_their_order(channel):
    for i in range(50):
        wire.send(channel[0], {"n": i, "t": torch.full((i,), i)})
    for i in range(50):
        message = wire.receive(channel[1])
        assert message["n"] == i and message["t"].tolist() == [i] * i


@pytest.mark.parametrize(
    "value",
    [object(), len, torch.float32, {1, 2}, b"bytes", 1j, torch.zeros(2, dtype=torch.complex64), type, range(3)],
    ids=lambda value: type(value).__name__,
)
def test_nothing_else_is_sent(value, channel):
    with pytest.raises(wire.ProtocolError, match="not sent"):
        wire.send(channel[0], {"value": [value]})
    channel[0].close()
    assert channel[1].recv(1) == b""  # not a byte of it


@pytest.mark.parametrize(
    "value", ["x" * (wire.MAX_TEXT + 1), torch.zeros(wire.MAX_BYTES // 4 + 1)], ids=["text", "data"]
)
def test_what_is_too_large_is_not_sent(value, channel):
    with pytest.raises(wire.ProtocolError, match="too large"):
        wire.send(channel[0], value)


# --- what is no message -----------------------------------------------------------------------------------------


def arriving(raw, deadline=5.0):
    """What `receive` makes of these bytes, the sender gone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(raw)
        ours.shutdown(socket.SHUT_WR)
        return wire.receive(theirs, time.monotonic() + deadline)


def message(value, data=b""):
    text = (value if isinstance(value, str) else json.dumps(value)).encode()
    return struct.pack(">II", len(text), len(data)) + text + data


def tensor(shape, stride, dtype="float32"):
    return {"_": "tensor", "dtype": dtype, "shape": shape, "stride": stride}


def test_a_message_by_hand_is_one():
    assert arriving(message([1, "a"])) == [1, "a"]
    assert torch.equal(arriving(message(tensor([2], [1]), struct.pack("<2f", 1, 2))), torch.tensor([1.0, 2.0]))


WHOLE = message(tensor([2], [1]), struct.pack("<2f", 1, 2))


@pytest.mark.parametrize("n", range(len(WHOLE)))
def test_a_message_cut_short(n):
    with pytest.raises(wire.ProtocolError, match="closed"):
        arriving(WHOLE[:n])


@pytest.mark.parametrize("lengths", [(wire.MAX_TEXT + 1, 0), (2, wire.MAX_BYTES + 1), (2**32 - 1, 2**32 - 1)])
def test_lengths_too_large_are_refused_before_anything_is_read(lengths):
    with pytest.raises(wire.ProtocolError, match="too large"):
        arriving(struct.pack(">II", *lengths))


DEEP = "[" * 100_000
NO_MESSAGES = {
    "no JSON": "hello",
    "half a list": "[1, 2",
    "nothing": "",
    "not UTF-8": None,
    "too deep for the reader": DEEP,
    "too deep": "[" * 30 + "]" * 30,
    "too many values": json.dumps([0] * (wire.MAX_ITEMS + 1)),
    "too many digits": "9" * 5000,
    "no kind": {},
    "unknown kind": {"_": "pickle", "data": "x"},
    "kind that is no text": {"_": ["tensor"]},
    "kind that names a class of ours, not of messages": {"_": "_Blobs", "fields": {"_": "dict", "items": []}},
    "dict without items": {"_": "dict"},
    "dict of numbers": {"_": "dict", "items": [1]},
    "dict of triples": {"_": "dict", "items": [[1, 2, 3]]},
    "items that are a number": {"_": "tuple", "items": 5},
    "fields that are a list": {"_": "Outcome", "fields": []},
    "fields that are text": {"_": "Outcome", "fields": "accepted"},
    "unknown fields": {"_": "Outcome", "fields": {"_": "dict", "items": [["code", "x"]]}},
    "fields missing": {"_": "Failure", "fields": {"_": "dict", "items": []}},
    "unknown dtype": tensor([0], [1], "complex64"),
    "dtype that is a list": tensor([0], [1], ["float32"]),
    "a tensor without bytes": tensor([2], [1]),
    "negative size": tensor([-1], [1]),
    "two negative sizes": tensor([-1, -2], [1, 1]),
    "huge size": tensor([2**40], [1]),
    "sizes whose product is huge": tensor([2**20, 2**20, 2**20], [1, 1, 1]),
    "huge empty": tensor([0, 2**26, 2**26, 2**26], [1, 1, 1, 1]),
    "size that is text": tensor(["2"], [1]),
    "size that is no whole number": tensor([1.5], [1]),
    "shape that is a number": tensor(2, 1),
    "shape that is nothing": tensor(None, None),
    "too many axes": tensor([1] * 9, [1] * 9),
    "fewer strides than axes": tensor([1, 2], [1]),
    "negative stride": tensor([2], [-1]),
    "huge stride": tensor([2], [2**40]),
}


@pytest.mark.parametrize("name", NO_MESSAGES)
def test_what_is_no_message_is_refused(name):
    value = NO_MESSAGES[name]
    raw = struct.pack(">II", 2, 0) + b"\xff\xfe" if value is None else message(value)
    with pytest.raises(wire.ProtocolError):
        arriving(raw)


def test_strides_that_overlap_cannot_be_forged():
    for stride in ([0, 0], [1, 1], [0, 1], [2**20, 1], [3, 2]):
        received = arriving(message(tensor([2, 3], stride), struct.pack("<6f", *range(6))))
        assert received.tolist() == [[0, 1, 2], [3, 4, 5]] and received.is_contiguous()


def test_little_text_cannot_make_much():
    """Tensors take their numbers from the data: a thousand tensors need the bytes of a thousand."""
    one = tensor([4096], [1])
    with pytest.raises(wire.ProtocolError, match="longer than its bytes"):
        arriving(message([one] * 1000, bytes(4 * 4096)))


def test_the_deadline_holds_for_one_who_says_nothing_and_one_who_dribbles(channel):
    ours, theirs = channel
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(theirs, start + 0.1)
    ours.sendall(WHOLE[:3])
    with pytest.raises(TimeoutError):
        wire.receive(theirs, time.monotonic() + 0.1)
    with pytest.raises(TimeoutError):
        wire.receive(theirs, time.monotonic() - 1)
    assert time.monotonic() - start < 2


def refused_or_plain(raw):
    with contextlib.suppress(wire.ProtocolError):
        arriving(raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw):
    with pytest.raises(wire.ProtocolError):
        arriving(b"\xff" + raw)
    refused_or_plain(raw)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=40))
def test_random_text_and_data_are_a_message_or_refused(text, data):
    refused_or_plain(struct.pack(">II", len(text), len(data)) + text + data)


small = st.integers(-2, 9)
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
tensors = st.builds(
    tensor,
    st.lists(small, max_size=4) | small,
    st.lists(small, max_size=4) | small,
    st.sampled_from([*wire.DTYPES, "complex64", "", 3]),
)
KINDS = ["tensor", "dict", "tuple", "construct", "load", "call", "Script", "Reply", "Result", "Failure", "Outcome", "x"]


def nested(inner):
    tagged = st.fixed_dictionaries({"_": st.sampled_from(KINDS)}, optional={"items": inner, "fields": inner})
    pairs = st.lists(st.tuples(st.text(max_size=8), inner), max_size=3)
    return st.one_of(st.lists(inner, max_size=3), tagged, pairs.map(lambda items: {"_": "dict", "items": items}))


@settings(max_examples=500, deadline=None)
@given(st.recursive(st.one_of(leaves, tensors), nested, max_leaves=12), st.binary(max_size=100))
def test_anything_in_json_is_a_message_or_refused(value, data):
    refused_or_plain(message(value, data))


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner), max_leaves=15)
)
def test_what_is_sent_arrives(value):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, value)
        received = wire.receive(theirs, time.monotonic() + 5)
    assert repr(received) == repr(value)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.permutations(range(4)),
    st.sampled_from(list(wire.DTYPES.values())),
)
def test_tensors_in_any_order_of_axes_arrive(shape, order, dtype):
    sent = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    sent = sent.permute([i for i in order if i < len(shape)])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.send(ours, sent)
        received = wire.receive(theirs, time.monotonic() + 5)
    assert received.dtype == dtype and torch.equal(received, sent)
    assert sent.numel() == 0 or received.stride() == sent.stride()
