import torch

from attncourse.bahdanau import additive_scores
from attncourse.lab.measure import allocated_bytes, median_ms


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
