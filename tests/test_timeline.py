"""The timeline: sorted, sourced, dated by its sources, and in agreement with the published models and the map."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from attncourse.models import load_models

ROOT = Path(__file__).parents[1]
DATA = ROOT / "attncourse" / "data"
TIMELINE = json.loads((DATA / "timeline.json").read_text("utf-8"))
MAP = json.loads((DATA / "map.json").read_text("utf-8")) if (DATA / "map.json").exists() else {"nodes": []}

NEEDED = {"date", "title", "who", "what", "chapter", "node", "source", "kind"}
OPTIONAL = {"record", "note"}  # a record of models.json; why the date is not that of the source's number

NODES = {
    "additive": "2014-09",
    "hard": "2015-02",
    **dict.fromkeys(("luong", "local"), "2015-08"),
    **dict.fromkeys(("self_attention", "cross_attention", "causal", "multi_head"), "2017-06"),
    "kv_cache": "2017-09",
    "online": "2018-05",
    "sparse": "2019-04",
    "mqa": "2019-11",
    **dict.fromkeys(("longformer", "sliding_window"), "2020-04"),
    "linear": "2020-06",
    "bigbird": "2020-07",
    "performer": "2020-09",
    "rope": "2021-04",
    "alibi": "2021-08",
    "tiled": "2022-05",
    "gqa": "2023-05",
    "paged": "2023-09",
    "rolling_cache": "2023-10",
    "quantized_cache": "2024-02",
    "mla": "2024-05",
}
NOT_DATED_BY_THE_SOURCE = {"Key-value cache": "code was public before any paper described it"}
NOT_BY_THE_SOURCES_AUTHORS = {"Qwen3-Next": "its makers published no paper on it; that of its gate names it"}

FIGURES = {  # what a sentence says of a model -> the field of its record
    r"([\d,]+) key-value heads?": "n_kv_heads",
    r"([\d,]+) query heads": "n_heads",
    r"for ([\d,]+) heads": "n_heads",
    r"window of ([\d,]+) tokens": "window",
    r"Each of its ([\d,]+) layers has a window": "n_local_layers",
    r"([\d,]+) layers have a window": "n_local_layers",
    r"([\d,]+) (?:global layers|layers (?:that )?see everything)": "n_global_layers",
    r"([\d,]+) layers of (?:softmax|latent) attention": "n_global_layers",
    r"([\d,]+) layers of (?:lightning|gated delta|Kimi delta)": "n_linear_layers",
    r"([\d,]+) latent numbers": "kv_lora_rank",
    r"([\d,]+) of a rotary key": "qk_rope_head_dim",
    r"the ([\d,]+) best": "index_topk",
}
OF_THE_WHOLE_MODEL = r"\d+B\b|\d+ billion parameters"  # its name, or its size


def read_sources() -> dict[str, dict[str, str]]:
    text = (ROOT / "book" / "references.bib").read_text("utf-8")
    entries = re.findall(r"^@\w+\{(\w+),\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return {key: dict(re.findall(r"^  (\w+) += \{(.*)\},$", body, re.MULTILINE)) for key, body in entries}


SOURCES = read_sources()
each = pytest.mark.parametrize("entry", TIMELINE, ids=[entry["title"] for entry in TIMELINE])
MODELS = [entry for entry in TIMELINE if entry["kind"] == "model"]
each_model = pytest.mark.parametrize("entry", MODELS, ids=[entry["title"] for entry in MODELS])


def month_of_number(eprint: str) -> str:
    return f"20{eprint[:2]}-{eprint[2:4]}"


def months_between(earlier: str, later: str) -> int:
    (year, month), (other_year, other_month) = (map(int, day.split("-")) for day in (earlier, later))
    return 12 * (other_year - year) + other_month - month


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d,]*", text)


def test_it_goes_from_2014_to_today_in_order():
    dates = [entry["date"] for entry in TIMELINE]
    assert dates == sorted(dates)
    assert dates[0].startswith("2014") and dates[-1] >= "2026"
    assert 40 <= len(TIMELINE) <= 60


def test_titles_differ():
    assert max(Counter(entry["title"] for entry in TIMELINE).values()) == 1


@each
def test_an_entry_is_whole(entry):
    assert set(entry) >= NEEDED and set(entry) <= NEEDED | OPTIONAL
    assert entry["kind"] in ("idea", "model")
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", entry["date"])
    assert all(entry[key].strip() == entry[key] and entry[key] for key in ("title", "who", "what", "source"))
    assert len(entry["title"]) <= 40


@each
def test_what_was_new_is_one_plain_sentence(entry):
    what = entry["what"]
    assert len(what) <= 160
    assert what[0].isupper() and what.endswith(".")
    assert not re.search(r"[.?!]\s|[$`*<>\[\]]", what)


@each
def test_the_chapter_exists(entry):
    assert entry["chapter"] is None or (ROOT / "notebooks" / f"{entry['chapter']}.ipynb").exists()


@each
def test_the_source_is_in_the_bibliography(entry):
    source = SOURCES[entry["source"]]
    assert source.get("author") and source.get("title") and source.get("year")
    assert source.get("eprint") or source.get("doi")


@each
def test_those_named_wrote_the_source(entry):
    if entry["title"] in NOT_BY_THE_SOURCES_AUTHORS:
        return
    names = [name.split(",")[0].strip("{}") for name in SOURCES[entry["source"]]["author"].split(" and ")]
    named = re.split(r", | and ", entry["who"])
    if named[-1] == "others":
        assert named[0] == names[0] and len(names) > 3 and len(named) == 2
    else:
        assert named == names


@each
def test_an_idea_has_the_month_of_its_first_version(entry):
    eprint = SOURCES[entry["source"]].get("eprint")
    if entry["kind"] == "model" or eprint is None:
        return
    same = entry["date"] == month_of_number(eprint)
    assert same == (entry["title"] not in NOT_DATED_BY_THE_SOURCE)
    assert same == ("note" not in entry)


@each_model
def test_a_model_that_came_in_another_month_than_its_source_says_so(entry):
    published = month_of_number(SOURCES[entry["source"]]["eprint"])
    assert abs(months_between(entry["date"], published)) < 12
    assert ("note" in entry) == (entry["date"] != published)


@each_model
def test_the_figures_of_a_model_are_those_of_its_record(entry):
    text = re.sub(OF_THE_WHOLE_MODEL, "", entry["what"])
    if "record" not in entry:
        assert not numbers(text)
        return
    record, read = load_models()[entry["record"]], []
    for pattern, field in FIGURES.items():
        for figure in re.findall(pattern, text):
            assert int(figure.replace(",", "")) == record[field], (figure, field)
            read.append(figure)
    assert sorted(read) == sorted(numbers(text)), "every figure is compared"


def test_only_models_have_a_record():
    assert all(entry["kind"] == "model" for entry in TIMELINE if "record" in entry)


def test_figures_said_in_words_agree_with_the_records():
    models = load_models()
    assert models["Llama-2-7b-hf"]["n_kv_heads"] == models["Llama-2-7b-hf"]["n_heads"]  # "does not share"
    mistral, gpt = models["Mistral-7B-v0.1"], models["gpt-oss-120b"]
    assert mistral["n_local_layers"] == mistral["n_layers"]  # "each of its layers"
    assert gpt["n_local_layers"] == gpt["n_global_layers"]  # "every second layer"
    assert models["Gemma-2-27b"]["n_local_layers"] == models["Gemma-2-27b"]["n_global_layers"]  # "alternating"
    assert models["Kimi-K3"]["max_context"] // 10**6 == 1  # "a million tokens"


@pytest.mark.parametrize("node", NODES)
def test_each_node_of_the_map_has_one_entry(node):
    (entry,) = [entry for entry in TIMELINE if entry["node"] == node]
    assert entry["date"] == NODES[node]
    assert entry["kind"] == "idea" and entry["chapter"]


def test_no_other_node_is_named():
    assert {entry["node"] for entry in TIMELINE} == {*NODES, None}


def test_map_and_timeline_agree():
    said = {entry["node"]: tuple(entry[key] for key in ("date", "chapter", "source")) for entry in TIMELINE}
    drawn = {node["id"]: tuple(node[key] for key in ("date", "chapter", "source")) for node in MAP["nodes"]}
    assert {node: said.get(node) for node in drawn} == drawn
    assert not drawn or set(drawn) == set(NODES)
