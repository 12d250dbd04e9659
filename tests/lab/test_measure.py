import re
from pathlib import Path

import pytest
import torch

from attncourse.bahdanau import additive_scores
from attncourse.lab import costs
from attncourse.lab.measure import allocated_bytes, matmul_dtype, median_ms, peak_bytes

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), torch.float16), ((7, 0), torch.float16), ((8, 0), torch.bfloat16), ((8, 9), torch.bfloat16)],
)
def test_sixteen_bits_go_by_the_capability_of_the_gpu(monkeypatch, capability, dtype):
    """A T4, 7.5, emulates bfloat16, and PyTorch calls that supported."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    assert matmul_dtype("cuda") == dtype and matmul_dtype("cpu") == torch.float32


def test_costs_on_a_t4_are_those_of_sixteen_bits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    about = {"n_tokens": 64, "d_model": 64, "n_heads": 4, "measure": False, "here": {"flop_per_s": 1, "bytes_per_s": 1}}
    (gpu,), (cpu,) = (costs.compare(["gqa"], device=device, **about) for device in ("cuda", "cpu"))
    assert 2 * gpu["cache_bytes"] == cpu["cache_bytes"] and 2 * gpu["step"]["bytes"] == cpu["step"]["bytes"]


def test_nothing_asks_pytorch_whether_bfloat16_is_supported():
    """Nor takes it for the one dtype of a GPU."""
    folders = ("attncourse", "benchmarks", "notebooks", "solutions")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".ipynb"}]
    wrong = r"is_bf16_supported\((?!\)` )|bfloat16 if .*(cuda|gpu)"
    found = [path.name for path in paths if re.search(wrong, path.read_text("utf-8"))]
    assert found == ["measure.py"], "`matmul_dtype` of attncourse/lab/measure.py decides"
