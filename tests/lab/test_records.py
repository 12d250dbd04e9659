"""Results are kept run by run: what stands is not made again, in one process or in more, and an error loses nothing."""

import json
from functools import partial

import pytest
import torch

from attncourse.lab.records import bound, keep_or_make


def square(key, made_from, log):
    """At the level of the module, so that another process can find it."""
    with open(log, "a") as file:
        file.write(key + "\n")
    if made_from["n"] < 0:
        raise FloatingPointError(f"{key} went wrong")
    return {"seconds": 0.0, "square": made_from["n"] ** 2}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_stands_is_kept_and_the_rest_is_made(workers, tmp_path, capsys):
    path, log = tmp_path / "results.json", tmp_path / "log"
    make, planned = partial(square, log=log), {str(n): {"n": n} for n in range(4)}
    path.write_text(json.dumps({"about": "stays", "runs": {"2": {"n": 2, "square": 4, "seconds": 1.0}, "9": {"n": 9}}}))
    made = keep_or_make(path, planned, make, workers)
    assert list(made) == ["0", "1", "2", "3"] and made["3"] == {"n": 3, "seconds": 0.0, "square": 9}
    assert sorted(log.read_text().split()) == ["0", "1", "3"]
    assert json.loads(path.read_text()) == {"about": "stays", "runs": made}
    assert "2: kept, 1.0 s" in capsys.readouterr().out
    keep_or_make(path, planned | {"1": {"n": 10}}, make, workers)  # made from something else now
    assert log.read_text().split()[3:] == ["1"]
    assert json.loads(path.read_text())["runs"]["1"]["square"] == 100


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_loses_nothing_that_is_done(workers, tmp_path):
    path, log = tmp_path / "results.json", tmp_path / "log"
    with pytest.raises(FloatingPointError, match="bad went wrong"):
        keep_or_make(path, {"1": {"n": 1}, "bad": {"n": -1}}, partial(square, log=log), workers)
    runs = json.loads(path.read_text())["runs"] if path.exists() else {}
    assert runs == {"1": {"n": 1, "seconds": 0.0, "square": 1}}
    assert keep_or_make(path, {"1": {"n": 1}}, partial(square, log=log), workers)["1"]["square"] == 1


@pytest.mark.parametrize(
    ("difference", "dtype", "expected"),
    [
        (0.0, torch.float32, 1e-7),  # rounding in another order moves as much
        (0.0, torch.float64, 1e-15),
        (4.9e-7, torch.float32, 1e-6),
        (5.1e-7, torch.float32, 1e-5),
        (5e-7, torch.float32, 1e-6),
        (3e-14, torch.float64, 1e-13),
        (0.3, torch.float32, 1.0),
    ],
)
def test_a_bound_is_the_power_of_ten_at_least_twice_the_difference(difference, dtype, expected):
    assert bound(difference, dtype) == expected


@pytest.mark.parametrize("difference", [float("nan"), float("inf"), -1e-9])
def test_no_bound_hides_what_is_no_difference(difference):
    with pytest.raises(ValueError, match="finite number from 0 on, not"):
        bound(difference, torch.float32)
