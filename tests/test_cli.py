"""`attncourse grade`: the table, the file, the exit codes, what is said of bad files. `attncourse kv`: its tables."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from attncourse import __version__, cli
from attncourse.checks import exercises
from attncourse.grading import examiner, isolation
from attncourse.models import kv_cache_bytes, load_models

ROOT = Path(__file__).parents[1]
SOLVED, FRESH = (ROOT / folder / "02_luong.ipynb" for folder in ("solutions", "exercises"))
CHAPTER = exercises("luong")
FULL = sum(spec.points for spec in CHAPTER)


def notebook(path, *cells):
    """A notebook with these code cells."""
    new = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path.write_text(nbformat.writes(new), "utf-8")
    return path


def run(*arguments, out):
    """Exit code and results; `out` is where they are written."""
    code = cli.main(["grade", *map(str, arguments), "--out", str(out)])
    return code, json.loads(out.read_text("utf-8")) if out.exists() else None


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The command run once, as a command, on a solved and a fresh notebook."""
    folder = tmp_path_factory.mktemp("grade")
    command = [sys.executable, "-m", "attncourse.cli", "grade", SOLVED, FRESH]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return done, json.loads((folder / "grades.json").read_text("utf-8"))


def test_the_table(both):
    done, _ = both
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.split(f"{FRESH}\n")
    lines = first.splitlines()
    assert lines[0] == str(SOLVED)
    for spec, line in zip(CHAPTER, lines[1:-1], strict=True):
        assert line.split() == ["✓", spec.id, f"{spec.points}/{spec.points}", "correct"]
    assert lines[-1].startswith(f"  {FULL} of {FULL} points in ") and lines[-1].endswith(" s, isolation A")
    *lines, total, last = second.splitlines()
    for spec, line in zip(CHAPTER, lines, strict=True):
        assert line.split() == ["○", spec.id, f"0/{spec.points}", "not", "attempted", "yet"]
    assert total.startswith(f"  0 of {FULL} points in ")
    assert last == "Results of 2 notebooks: grades.json"


def test_the_columns_stand_under_each_other(both):
    lines = [line for line in both[0].stdout.splitlines() if line.startswith(("  ✓", "  ○"))]
    assert len({line.index("/") for line in lines}) == 1


def test_the_file_has_gradescopes_form(both):
    _, results = both
    assert list(results) == [str(SOLVED), str(FRESH)]
    for path, score, status in ((SOLVED, FULL, "passed"), (FRESH, 0, "failed")):
        record = results[str(path)]
        assert set(record) == {"score", "execution_time", "tests", "extra_data"}
        assert record["score"] == sum(test["score"] for test in record["tests"]) == score
        assert record["execution_time"] > 0
        assert [test["name"] for test in record["tests"]] == [spec.id for spec in CHAPTER]
        assert [test["max_score"] for test in record["tests"]] == [spec.points for spec in CHAPTER]
        for test in record["tests"]:
            assert set(test) == {"name", "score", "max_score", "status", "output", "visibility"}
            assert (test["status"], test["visibility"]) == (status, "visible") and test["name"] in test["output"]
        assert record["extra_data"] == {"isolation": "A", "mistakes": {}, "cell_errors": {}}


def test_mistakes_and_cells_that_raise_are_in_both(tmp_path, capsys):
    path = notebook(
        tmp_path / "half.ipynb",
        "def general_score(query, keys, weight):\n    return query @ weight @ keys.mT / keys.shape[-1] ** 0.5",
        "1 / 0",
        "raise ValueError('\\ud800 \\x1b[31mred\\n\\x1b]0;title\\x07')",
        "def test_general_score(candidate):\n    return True",
    )
    code, results = run(path, out=tmp_path / "out.json")
    said = capsys.readouterr().out
    assert code == 0
    extra = results[str(path)]["extra_data"]
    assert extra["mistakes"]["luong/general_score"] == ["scaled"]
    assert len(extra["mistakes"]["luong/test_general_score"]) == 7
    assert extra["cell_errors"]["1"] == "ZeroDivisionError: division by zero"
    assert "0/1  the scores are divided by the square root of their size" in said
    assert "    code cell 2: ZeroDivisionError: division by zero" in said
    assert "\x1b" not in said and "\x07" not in said


def test_what_cannot_be_graded_is_said_and_the_rest_is_graded(tmp_path, capsys):
    files = {
        "missing.ipynb": None,
        "text.ipynb": "# my answers",
        "list.ipynb": "[1, 2]",
        "other.ipynb": '{"cells": 3}',
        "latin.ipynb": "é".encode("latin-1"),
        "empty.ipynb": "",
    }
    for name, text in files.items():
        if text is not None:
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    notebook(tmp_path / "essay.ipynb", "print('hello')")
    (tmp_path / "folder.ipynb").mkdir()
    good = notebook(tmp_path / "good.ipynb", "def attentional_vector(context, state, weight):\n    return context")
    bad = [tmp_path / name for name in [*files, "essay.ipynb", "folder.ipynb"]]
    code, results = run(*bad, good, out=tmp_path / "out.json")
    said = capsys.readouterr()
    assert code == 1
    assert list(results) == [*map(str, bad), str(good)]
    assert len(results[str(good)]["tests"]) == len(CHAPTER)
    for path, words in zip(
        bad,
        [
            *("there is no such file", "is not whole JSON", "not a notebook of format 4", "not a notebook of format 4"),
            *("is not UTF-8 text", "is not whole JSON", "has no exercise of this course in it", "directory"),
        ],
        strict=True,
    ):
        record = results[str(path)]
        assert (record["score"], record["tests"]) == (0, []) and words in record["output"], path
        assert f"{path}: {record['output']}" in said.err
    assert str(good) in said.out


def test_a_notebook_too_large_is_not_read(tmp_path, monkeypatch, capsys):
    from attncourse.grading import notebook as reading

    monkeypatch.setattr(reading, "MAX_BYTES", 100)
    code, results = run(notebook(tmp_path / "big.ipynb", "x = 1" * 100), out=tmp_path / "out.json")
    assert code == 1 and "Clear outputs" in next(iter(results.values()))["output"]


def test_only_files_that_cannot_be_graded(tmp_path, capsys):
    code, results = run(tmp_path / "missing.ipynb", out=tmp_path / "out.json")
    assert code == 1 and len(results) == 1


def test_notebooks_of_several_chapters(tmp_path, capsys):
    paths = [ROOT / "solutions" / name for name in ("01_bahdanau.ipynb", "02_luong.ipynb")]
    code, results = run(*paths, out=tmp_path / "out.json")
    assert code == 0
    for path, chapter in zip(paths, ("bahdanau", "luong"), strict=True):
        assert {test["name"].split("/")[0] for test in results[str(path)]["tests"]} == {chapter}
        assert {test["status"] for test in results[str(path)]["tests"]} == {"passed"}


def test_without_isolation(tmp_path, capsys):
    path = notebook(
        tmp_path / "own.ipynb",
        "import torch\ndef general_score(query, keys, weight):\n    return query @ weight @ keys.mT",
    )
    code, results = run(path, "--isolation", "C", out=tmp_path / "out.json")
    assert code == 0 and results[str(path)]["score"] == 1
    assert results[str(path)]["extra_data"]["isolation"] == "C"
    assert "isolation C" in capsys.readouterr().out


def test_a_machine_that_cannot_isolate_says_so_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(isolation, "available", lambda: "namespaces are refused")
    code, results = run(SOLVED, out=tmp_path / "out.json")
    assert (code, results) == (1, None)
    said = capsys.readouterr().err
    assert said.startswith("attncourse grade: this machine cannot isolate a learner's code: namespaces are refused.")
    assert "--isolation C" in said


def test_results_that_cannot_be_written_are_said_before_anything_is_graded(tmp_path, capsys):
    code, results = run(SOLVED, out=tmp_path / "no" / "folder" / "out.json")
    assert (code, results) == (2, None)
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("attncourse grade: cannot write ")


def test_stopping_it_keeps_what_is_graded(tmp_path, capsys, monkeypatch):
    real, calls = examiner.grade, []

    def second_time_stopped(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(examiner, "grade", second_time_stopped)
    code, results = run(FRESH, SOLVED, out=tmp_path / "out.json")
    assert code == 130 and list(results) == [str(FRESH)]
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("seed", [1, 77])
def test_other_inputs_judge_alike(seed, tmp_path, capsys):
    code, results = run(SOLVED, "--seed", seed, out=tmp_path / "out.json")
    assert code == 0 and results[str(SOLVED)]["score"] == FULL
    assert "Results of 1 notebook: " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["grade"], ["grade", "x.ipynb", "--isolation", "B"], ["grad", "x.ipynb"]])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2
    assert "usage: attncourse" in capsys.readouterr().err


def test_version_and_help(capsys):
    for arguments, words in ((["--version"], f"attncourse {__version__}"), (["grade", "--help"], "an .ipynb file")):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        assert left.value.code == 0
        assert words in capsys.readouterr().out


def kv(capsys, *arguments):
    """Exit code, the output's lines, and what was said as an error."""
    code = cli.main(["kv", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_kv_as_a_command():
    command = [sys.executable, "-m", "attncourse.cli", "kv", "deepseek-v3", "Gemma-3-27b-it", "--tokens", "131072"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "131,072 tokens in a sequence, bf16; caches in GiB"
    assert [" ".join(line.split()) for line in lines[2:5]] == [
        "model layers bytes a token cache all global full MHA attention",
        "DeepSeek-V3 61 70,272 8.58 8.58 488.00 MLA",
        "Gemma-3-27b-it 62 507,904 10.41 62.00 124.00 GQA, 52 of 62 local (1,024)",
    ]
    assert len({line.index(word) for line, word in zip(lines[2:5], ("attention", "MLA", "GQA"), strict=True)}) == 1
    assert lines[8].startswith("DeepSeek-V3: deepseek-ai/DeepSeek-V3, inference/configs/config_671B.json")
    assert lines[8].endswith("(2025-08-28, evidence: maker)")


@pytest.mark.parametrize("dtype, bits", [("fp32", 32), ("bf16", 16), ("fp8", 8), ("int4", 4)])
def test_kv_counts_sequences_and_bits(capsys, dtype, bits):
    code, lines, _ = kv(capsys, "Llama-3.1-8B", "--tokens", "8,192", "--dtype", dtype, "--batch", 3)
    assert code == 0 and lines[0] == f"8,192 tokens in each of 3 sequences, {dtype}; caches in GiB"
    gib = 3 * kv_cache_bytes("Llama-3.1-8B", 8192, bits) / 2**30
    assert lines[3].split()[1:4] == ["32", f"{8192 * bits:,}", f"{gib:.2f}"]


def test_kv_says_what_limits_a_model(capsys):
    _, lines, _ = kv(capsys, "Llama-2-7b-hf", "PaLM 540B")
    assert "  made for at most 4,096 tokens" in lines and any("evidence: unsourced" in line for line in lines)
    _, lines, _ = kv(capsys, "Llama-2-7b-hf", "--tokens", 4096)
    assert not any("at most" in line for line in lines)


def test_kv_without_a_model_lists_them(capsys):
    code, lines, _ = kv(capsys)
    assert code == 0 and lines[0].startswith("model ")
    names = list(load_models())
    assert [line[: len(name)] for line, name in zip(lines[1:], names, strict=False)] == names
    assert max(map(len, lines)) <= 120


def test_kv_of_an_unknown_model_names_the_nearest(capsys):
    code, lines, error = kv(capsys, "DeepSeek-V3", "gemma 3 27b")
    assert (code, lines) == (2, [])
    assert error.startswith("attncourse kv: no model is named 'gemma 3 27b'; the nearest names: ")
    assert "Gemma-3-27b-it" in error and "Traceback" not in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["x", "--tokens", "0"], "'0' is not a whole number, 1 or more"),
        (["x", "--tokens", "1.5"], "'1.5' is not a whole number"),
        (["x", "--batch", "-1"], "--batch"),
        (["x", "--dtype", "int3"], "invalid choice: 'int3'"),
    ],
)
def test_kv_wrong_usage(arguments, words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["kv", *arguments])
    assert left.value.code == 2
    assert words in capsys.readouterr().err


def test_kv_help(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["kv", "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    for words in ("none lists them all", "(default: 131072)", "Example: attncourse kv DeepSeek-V3", "Exit status: 0"):
        assert words in " ".join(said.split()), words
