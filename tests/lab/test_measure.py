import torch

from attncourse.bahdanau import additive_scores
from attncourse.lab.measure import allocated_bytes, median_ms, peak_bytes


def test_bytes_of_new_tensors_are_counted_and_views_are_free():
    x = torch.zeros(10, 100)
    assert allocated_bytes(lambda: x.T) == (0, 0)
    assert allocated_bytes(lambda: (x * 2, x @ x.T)) == (4000 + 400, 4000)


def test_additive_scores_make_a_tensor_of_every_pair():
    query, keys, v = torch.zeros(2, 3, 7), torch.zeros(2, 5, 7), torch.zeros(7)
    assert allocated_bytes(lambda: additive_scores(query, keys, v))[1] == 4 * 2 * 3 * 5 * 7


def test_every_function_is_called_equally_often():
    calls = []
    times = median_ms({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4
    assert set(times) == {"a", "b"} and all(ms >= 0 for ms in times.values())


def test_the_peak_is_what_is_held_at_a_time():
    """Three tensors one after the other, each of 100 kB, of which two are held at a time."""

    def call():
        x = torch.zeros(25_000)
        x = x + 1
        return x + 1

    assert 200_000 <= peak_bytes(call) < 201_000  # and the number 1, as a tensor
    assert allocated_bytes(call)[0] == 300_000


def test_the_peak_sees_inside_kernels():
    """A softmax in double precision needs no more than its result; a sort holds indices as well."""
    x = torch.zeros(10_000)
    assert peak_bytes(lambda: x.sort()[0]) >= 40_000 + 80_000
