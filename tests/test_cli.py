"""The command line: what each command prints and writes, its exit codes, and what it says of what is wrong."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from attncourse import MECHANISMS, __version__, build, cli
from attncourse.checks import CHAPTERS, Report, evaluate, exercises
from attncourse.cli import listing
from attncourse.grading import examiner, isolation
from attncourse.lab import costs
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
        extra = record["extra_data"]
        assert extra["protection"].pop("system calls") in ("filtered (seccomp)", "open")
        closed = dict.fromkeys(("files", "network", "processes"), "closed (namespace)")
        assert extra.pop("protection") == closed
        assert extra == {"isolation": "A", "mistakes": {}, "cell_errors": {}, "left_behind": ""}


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
            *("there is no such file", "(not whole JSON)", "not a notebook of format 4", "not a notebook of format 4"),
            *("is not UTF-8 text", "is an empty file", "has no exercise of this course in it", "folder"),
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
    monkeypatch.setattr(isolation, "available_to_root", lambda: "level B needs root")
    code, results = run(SOLVED, out=tmp_path / "out.json")
    assert (code, results) == (1, None)
    said = capsys.readouterr().err
    assert said.startswith("attncourse grade: this machine cannot isolate a learner's code: namespaces are refused, ")
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


@pytest.mark.parametrize("arguments", [[], ["grade"], ["grade", "x.ipynb", "--isolation", "D"], ["grad", "x.ipynb"]])
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


def said_by(capsys, *arguments):
    """Exit code, the output, and what was said as an error."""
    code = cli.main(list(map(str, arguments)))
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def test_list_shows_all_three(capsys):
    code, out, error = said_by(capsys, "list")
    assert (code, error) == (0, "")
    assert [line for line in out.splitlines() if line.isupper()] == ["CHAPTERS", "MECHANISMS", "EXERCISES"]
    assert max(map(len, out.splitlines())) <= 120
    for part in listing.PARTS:
        _, alone, _ = said_by(capsys, "list", part)
        assert alone.strip() in out


def test_list_has_every_chapter_and_what_its_exercises_ask(capsys):
    _, out, _ = said_by(capsys, "list", "chapters")
    header, *lines = out.splitlines()
    assert [line.split()[1] for line in lines] == list(listing.CHAPTERS)
    for number, (line, name) in enumerate(zip(lines, listing.CHAPTERS, strict=True)):
        tasks = exercises(name) if name in CHAPTERS else []
        assert line.startswith(f"{number:02}  {name} ")
        sums = [len(tasks), sum(task.points for task in tasks), sum(task.minutes for task in tasks)]
        assert line.split()[-3:] == [str(n) for n in sums]
    assert header.split() == ["chapter", "title", "modules", "exercises", "points", "minutes"]


def test_list_gives_chapters_the_titles_and_the_order_of_their_notebooks():
    assert [name for name in listing.CHAPTERS if name in CHAPTERS] == list(CHAPTERS)
    for number, (name, (title, _)) in enumerate(listing.CHAPTERS.items()):
        path = ROOT / "notebooks" / f"{number:02}_{name}.ipynb"
        if path.exists():
            first = nbformat.read(path, 4).cells[0].source.splitlines()[0]
            assert first == f"# {title}", path


def test_list_says_which_modules_are_there(capsys, monkeypatch):
    monkeypatch.setitem(listing.CHAPTERS, "choosing", ("Choosing", ("lab", "someday")))
    _, out, _ = said_by(capsys, "list", "chapters")
    assert "sparse, longformer, bigbird " in out and "lab, someday (planned)" in out
    known = {path.stem for path in (ROOT / "attncourse").iterdir()}
    modules = {name for _, names in listing.CHAPTERS.values() for name in names} - {"someday"}
    assert modules <= known


def test_list_has_every_mechanism_with_the_options_that_build_gives(capsys):
    _, out, _ = said_by(capsys, "list", "mechanisms")
    lines = {line.split()[0]: line for line in out.splitlines() if line.startswith(tuple(MECHANISMS))}
    assert set(lines) == set(MECHANISMS)
    assert "SlidingWindowAttention    window=64" in lines["sliding_window"]
    assert build("sliding_window", 32, 4).window == 64
    assert "n_kv_heads=n_heads // 4, at least 1" in lines["gqa"] and build("gqa", 32, 8).n_kv_heads == 2
    assert "kv_lora_rank=d_model // 4" in lines["mla"] and build("mla", 32, 4).kv_lora_rank == 8
    assert "qk_rope_head_dim half that" in out and "all have causal=True" in out


@pytest.mark.parametrize("what", ["gqa", "13", "GQA"])
def test_list_of_one_chapter(what, capsys):
    code, out, _ = said_by(capsys, "list", what)
    header, *lines = out.splitlines()
    assert code == 0 and header.split() == ["exercise", "minutes", "points", "level", "title"]
    tasks = exercises("gqa")
    for task, line in zip(tasks, lines, strict=False):
        assert line.split()[:4] == [task.id, str(task.minutes), str(task.points), "●" * task.difficulty]
        assert line.endswith(task.title)
    assert lines[-1] == f"{len(tasks)} exercises, {sum(task.points for task in tasks)} points, 0 h 55 min"


@pytest.mark.parametrize("what, words", [("gqo", "did you mean gqa"), ("exercise", "exercises"), ("99", "chapters, ")])
def test_list_of_nothing_names_the_nearest(what, words, capsys):
    code, out, error = said_by(capsys, "list", what)
    assert (
        (code, out) == (2, "") and error.startswith(f"attncourse list: there is no list '{what}'; ") and words in error
    )


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-m", "attncourse.cli", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        error = process.stderr.read()
        assert (process.wait(timeout=60), error) == (0, b"")


HERE = {"flop_per_s": 1e11, "bytes_per_s": 1e10}


@pytest.fixture
def known_machine(monkeypatch):
    monkeypatch.setattr(costs, "machine", lambda device: HERE)


SIZES = ["--tokens", "64", "--d-model", "64", "--heads", "4"]


def test_compare_shows_the_reference_and_what_was_asked_for(capsys, known_machine):
    code, out, error = said_by(capsys, "compare", "GQA", "sliding-window", *SIZES)
    assert (code, error) == (0, "")
    first, second, _, *lines = out.splitlines()
    assert first.startswith("64 tokens, d_model 64, 4 heads, float32 on cpu, ") and first.endswith(
        "budget: 1/4 of multi-head attention's cache"
    )
    assert second == "A product of matrices reaches 100.0 GFLOP/s here, a copy 10.0 GB/s."
    names = ["multi_head", "gqa", "sliding_window"]
    assert [line.split()[0] for line in lines if line] == ["cache", *names, "prefill", *names, "step", *names]
    assert "gqa             0.01 MB   25.0%  n_kv_heads=1" in lines
    for row, line in zip(costs.compare(names, n_tokens=64, d_model=64, n_heads=4, here=HERE), lines[11:], strict=True):
        step = row["step"]
        assert line.split()[:6] == [
            *(row["mechanism"], f"{step['flop'] / 1e6:,.1f}", f"{step['bytes'] / 1e6:,.1f}"),
            *(f"{step['bound_ms']:.2f}", "ms", step["binds"]),
        ]
        assert float(line.split()[6]) > 0
    assert max(map(len, lines)) <= 120


def test_compare_without_names_has_all_and_without_measuring_no_times(capsys, known_machine, monkeypatch):
    monkeypatch.setattr(costs, "measure_layers", None)
    code, out, _ = said_by(capsys, "compare", "--no-measure", "--budget", "0.5", *SIZES)
    assert code == 0 and "budget: 1/2 of" in out
    for name in MECHANISMS:
        assert len([line for line in out.splitlines() if line.startswith(f"{name} ")]) == 3
        assert sum(line.startswith(f"{name} ") and line.endswith(" –") for line in out.splitlines()) == 2


def test_compare_long_waits_are_announced(capsys, monkeypatch):
    slow = {"flop_per_s": 1e5, "bytes_per_s": 1e5}
    monkeypatch.setattr(costs, "machine", lambda device: slow)
    code, out, error = said_by(capsys, "compare", "mqa", *SIZES)
    assert code == 0 and error.startswith("Measuring takes ") and "--no-measure" in error and " s  compute" in out


@pytest.mark.parametrize("suffix, begin", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
@pytest.mark.parametrize("options", [[], ["--no-measure"]])
def test_compare_draws(suffix, begin, options, tmp_path, capsys, known_machine):
    out = tmp_path / f"costs.{suffix}"
    code, said, _ = said_by(capsys, "compare", "mha", "gqa", *SIZES, *options, "--out", out)
    assert code == 0 and said.splitlines()[-1] == f"Figure: {out}"
    assert out.read_bytes().startswith(begin)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["gpa"], "there is no mechanism 'gpa'; did you mean "),
        (["tensor"], "it must be one of multi_head, sliding_window"),
        (["gqa", "--budget", "1/64"], "is too small for gqa: it leaves 2 numbers a token of 64, and n_kv_heads=0"),
        (["gqa", "--heads", "5"], "d_model=64 is not divisible by n_heads=5"),
        (["gqa", "--out", "costs.txt"], "cannot write costs.txt; a figure's name ends in .svg, .png or .pdf"),
        (["gqa", "--out", "no/folder/costs.svg"], "cannot write no/folder/costs.svg; name a file in a folder that"),
    ],
)
def test_compare_says_what_does_not_fit(arguments, words, capsys, known_machine):
    code, out, error = said_by(capsys, "compare", *SIZES, *arguments)
    assert (code, out) == (2, "") and error.startswith("attncourse compare: ") and words in error
    assert error.count("\n") == 1


def test_compare_needs_matplotlib_for_a_figure_alone(capsys, known_machine, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, error = said_by(capsys, "compare", "gqa", *SIZES, "--out", tmp_path / "x.svg")
    assert (code, out) == (1, "") and "a figure needs matplotlib (pip install matplotlib)" in error
    assert said_by(capsys, "compare", "gqa", "--no-measure", *SIZES)[0] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_compare_on_a_device_that_is_not_there(capsys):
    code, out, error = said_by(capsys, "compare", "gqa", *SIZES, "--device", "cuda")
    assert (code, out) == (1, "") and error.startswith("attncourse compare: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--budget", "2"], "'2' is not a share: more than 0 and at most 1"),
        (["--budget", "0"], "not a share"),
        (["--budget", "1/0"], "not a share"),
        (["--budget", "a lot"], "not a share"),
        (["--tokens", "0"], "not a whole number"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_compare_wrong_usage(arguments, words, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["compare", "gqa", *arguments])
    assert left.value.code == 2 and words in capsys.readouterr().err


def test_stopping_a_comparison(capsys, monkeypatch):
    def stopped(device):
        raise KeyboardInterrupt

    monkeypatch.setattr(costs, "machine", stopped)
    assert said_by(capsys, "compare", "gqa") == (130, "", "stopped\n")


def test_check_says_what_check_says(tmp_path, capsys):
    right = "def repeat_kv(kv, n_repeats):\n    return kv.repeat_interleave(n_repeats, 1)"
    wrong = "def repeat_kv(kv, n_repeats):\n    return kv.repeat(1, n_repeats, 1, 1)"
    n = len(exercises("gqa"))
    code, out, error = said_by(capsys, "check", notebook(tmp_path / "right.ipynb", right))
    assert (code, error) == (1, "") and out.startswith("✓ gqa/repeat_kv: correct")
    assert out.splitlines()[-1] == f"1 of {n} right, 0 not right, {n - 1} not attempted"
    failing = notebook(tmp_path / "wrong.ipynb", wrong, "raise ValueError('\\x1b[31m')")
    call = 'check("gqa/repeat_kv", repeat_kv, "tiled")'  # as in an instructor's copy, which asks for that order
    code, out, _ = said_by(capsys, "check", failing, notebook(tmp_path / "copy.ipynb", wrong, call))
    space: dict = {}
    exec(wrong, space)
    assert code == 1 and str(Report(evaluate("gqa/repeat_kv", space["repeat_kv"]))) in out
    assert out.splitlines()[-1] == f"1 of {2 * n} right, 1 not right, {2 * n - 2} not attempted"
    assert out.count("✓ gqa/repeat_kv") == out.count("✗ gqa/repeat_kv") == 1
    assert "Code cell 2: ValueError: ?[31m" in out and "\x1b" not in out


def test_check_of_solved_notebooks(capsys):
    code, out, error = said_by(capsys, "check", SOLVED, ROOT / "solutions" / "13_gqa.ipynb")
    n = len(CHAPTER) + len(exercises("gqa"))
    assert (code, error) == (0, "") and out.splitlines()[0] == str(SOLVED)
    assert out.splitlines()[-1] == f"{n} of {n} right, 0 not right, 0 not attempted"


def test_check_of_what_is_no_notebook(tmp_path, capsys):
    missing, essay = tmp_path / "missing.ipynb", notebook(tmp_path / "essay.ipynb", "print('hello')")
    code, out, error = said_by(capsys, "check", missing, essay)
    assert (code, out) == (2, "")
    assert error == (f"{missing}: there is no such file\n{essay}: essay.ipynb has no exercise of this course in it\n")
    code, out, error = said_by(capsys, "check", missing, SOLVED)  # the other one is checked
    assert code == 2 and out.endswith(f"{len(CHAPTER)} of {len(CHAPTER)} right, 0 not right, 0 not attempted\n")


def test_check_without_a_jail_says_so(capsys, monkeypatch):
    monkeypatch.setattr(isolation, "available", lambda: "namespaces are refused")
    monkeypatch.setattr(isolation, "available_to_root", lambda: "level B needs root")
    code, out, error = said_by(capsys, "check", SOLVED)
    assert (code, out) == (1, "") and error.startswith("attncourse check: this machine cannot isolate")
    assert said_by(capsys, "check", SOLVED, "--isolation", "C")[0] == 0


def test_stopping_a_check(capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(examiner, "grade", stopped)
    code, _, error = said_by(capsys, "check", SOLVED)
    assert (code, error) == (130, "stopped\n")


@pytest.mark.parametrize("command", ["list", "compare", "kv", "check", "grade"])
def test_every_command_has_help_with_an_example_and_its_exit_status(command, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert left.value.code == 0 and re.search(rf"Examples?: attncourse {command} ", said)
    assert "Exit status: 0 " in said and ", 2 " in said
