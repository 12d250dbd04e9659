"""What ran on which device is counted as it was, and without a GPU `make test-gpu` refuses."""

import json

import pytest
import torch

from scripts import tested_on
from tests.book.extensions import load

PAGE = load("attncourse_tested")
REPORT = """<testsuites><testsuite><testcase name="test_a[cpu-1]"/><testcase name="test_a[cuda-1]"/>
<testcase name="test_cuda"/><testcase name="test_b[cuda]"><failure/></testcase>
<testcase name="test_c"><error/></testcase><testcase name="test_d"><skipped/></testcase></testsuite></testsuites>"""
COUNTS = {"passed": 1234, "failed": 1, "skipped": 2, "on_device": 300, "seconds": 45}
RUN = {"date": "2026-01-02", "device": "cuda", "name": "Tesla T4", "capability": "7.5"}
RUN |= {"versions": {"python": "3.13.1", "torch": "2.9.0", "cuda": "12.8"}}
RUN |= {"parts": {part: COUNTS for part in tested_on.PARTS} | {"notebooks": COUNTS | {"outputs_compared": 99}}}


def test_outcomes_are_counted():
    assert tested_on.counted(REPORT, "cuda") == {"passed": 3, "failed": 2, "skipped": 1, "on_device": 1}


def test_without_a_gpu_nothing_is_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(tested_on, "run", lambda *_: pytest.fail("it ran"))
    assert tested_on.main(["--device", "cuda"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("No GPU: torch.cuda.is_available() is False.") and "Nothing was run." in said


def test_a_gpu_that_is_hidden_from_a_cuda_build_is_looked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert "is built for CUDA 12.8, and finds no GPU" in tested_on.refusal("cuda")
    assert tested_on.refusal("cpu") == ""


def test_a_run_takes_the_place_of_an_older_one_of_its_device():
    newer, other = RUN | {"date": "2027-01-01"}, RUN | {"name": "A100"}
    found = tested_on.written(tested_on.written({"runs": [RUN]}, newer), other)
    assert found == {"runs": [other, newer]}


def test_a_failed_part_fails_the_whole_and_is_written_down(monkeypatch, tmp_path):
    target = tmp_path / "tested_on.json"
    monkeypatch.setattr(tested_on, "ROOT", tmp_path)
    monkeypatch.setattr(tested_on, "TARGET", target)
    monkeypatch.setattr(tested_on, "run", lambda part, *_: RUN["parts"][part])
    assert tested_on.main([]) == 1
    (run,) = json.loads(target.read_text())["runs"]
    assert run["device"] == "cpu" and run["parts"] == RUN["parts"] and run["versions"]["torch"] == torch.__version__


def test_parts_alone_are_not_written(monkeypatch, tmp_path):
    monkeypatch.setattr(tested_on, "TARGET", tmp_path / "tested_on.json")
    monkeypatch.setattr(tested_on, "run", lambda *_: COUNTS | {"failed": 0})
    assert tested_on.main(["checks"]) == 0 and not tested_on.TARGET.exists()


def test_one_file_is_run_and_counted(monkeypatch):
    monkeypatch.setitem(tested_on.PARTS, "checks", "tests/test_imports.py")
    found = tested_on.run("checks", "cpu", processes=1)
    assert found["passed"] > 0 and found["failed"] == found["on_device"] == 0


def test_what_is_named_exists():
    words = [word for line in tested_on.PARTS.values() for word in line.split() if not word.startswith("-")]
    paths = [word for word in words if word not in {"loadfile", "loadgroup", "not~browser"}]
    assert "tests/test_gqa.py" in paths and all((tested_on.ROOT / path).exists() for path in paths)
    assert tested_on.marked() > 100


def test_the_page_shows_what_was_measured_and_what_was_not():
    text = PAGE.tested_markdown({"runs": [RUN]})
    assert "| GPU: Tesla T4, compute capability 7.5 | 2026-01-02 | 3.13.1, 2.9.0, 12.8 |" in text
    assert "| Tesla T4 | checks | 1,234 | 1 | 2 | 300 | 45 |" in text
    assert "| CPU | not measured yet |" in text and "| GPU | not" not in text
    assert "99 marked outputs" in text
    nothing = PAGE.tested_markdown({"runs": []})
    assert nothing.count("not measured yet") == 2 and "passed" not in nothing


def test_the_committed_file_becomes_a_page():
    content = json.loads(tested_on.TARGET.read_text())
    text = PAGE.tested_markdown(content)
    assert all(run["date"] in text and run["name"] in text for run in content["runs"])
