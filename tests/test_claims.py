"""Every audited claim: its number recomputed, its sources known, and none of those that are required left out."""

import copy
import re
from collections import Counter

import pytest
import yaml

from attncourse.show.claims import CHAPTERS, CHECKED, VERDICTS
from scripts import claims as audit

CLAIMS = yaml.safe_load(audit.SOURCE.read_text("utf-8"))
BY_ID = {claim["id"]: claim for claim in CLAIMS}
EVIDENCE = {
    "matched ablation",
    "vendor's figure",
    "published record",
    "measured here",
    "arithmetic",
    "opinion",
    "none",
}
NEEDED = {"id", "title", "chapter", "claim", "said_by", "baseline", "verdict", "evidence", "checked", "why"}
ALLOWED = NEEDED | {"where", "told", "inputs", "steps", "formula", "recomputed", "tolerance", "unit"}

REQUIRED = {  # what the course promised to give a verdict -> the claims that do
    "GQA at 32k tokens: 17.18 and 4.29 GB": ["gqa-32k"],
    "the word groups": ["gqa-groups"],
    "GQA is faster, and a published toy run of MHA, GQA, MLA, SWA": ["gqa-faster"],
    "DeepSeek-V2, table 8": ["gqa-deepseek-table-8", "mqa-minor-loss"],
    "GQA-8 is close to MHA": ["gqa-close-to-mha"],
    "DeepSeek-V3: 70,272 B a token, 2.25 heads": ["v3-70272", "mla-2-25"],
    "57 times": ["mla-57x"],
    "93.3 %, 82.2 % without quantization": ["mla-93"],
    "6 times faster": ["mla-576"],
    "GQA < MHA < MLA, table 9": ["mla-order", "mla-table-9"],
    "estimators that count the latent only": ["mla-latent-only"],
    "below 100B GQA is better": ["mla-below-100b"],
    "5:1 on 32 layers": ["swa-5-to-1"],
    "bytes a token of Gemma 3": ["gemma-bytes-a-token"],
    "receptive field, nominal and used": ["mistral-131k", "reach-is-use"],
    "MLA against MQA": ["mla-below-mqa"],
    "late 2024": ["mla-late-2024"],
    "4 sets, 4 to 8 times": ["gqa-4-sets"],
    "the quadratic curse": ["mla-quadratic"],
    "attention began in 2017": ["began-2017"],
    "a triangle of zeros": ["mask-of-zeros"],
    "GQA in Llama 2 and 3": ["gqa-llama-2"],
    "32 times; 100,000 tokens": ["mqa-32x", "cache-100k"],
    "1,024, 5,000, 10,000 tokens; 50 % less": ["tokens-1024", "sparse-5000", "performer-10000", "sparse-50"],
    "grammar and sentiment": ["head-grammar"],
    "DeepSeek's sparse attention: cache, and indexer": ["dsa-smaller", "dsa-linear"],
    "a delta state and 64 tokens": ["delta-64-tokens"],
    "is_causal: only when empty, top-left": ["causal-only-first", "top-left"],
    "cached after repeating": ["repeated-cache"],
    "RoPE on the latent": ["mla-rope-on-latent"],
    "ABAB": ["abab"],
    "windows off by one; -1e9 in float16": ["window-means-window", "fill-1e9"],
    "linear attention": ["linear-4000x", "linear-same-quality", "performer-accurate"],
    "sparse patterns": ["longformer-linear", "bigbird-8x", "sparse-sqrt"],
    "quantized caches": ["kivi-26", "int4-4x", "keys-per-channel"],
    "uptraining": ["gqa-5-percent", "gqa-mean-pooling"],
    "MQA's own tables": ["mqa-12x", "mqa-minor-loss"],
    "FlashAttention is exact": ["flash-approximate"],
}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_every_number_comes_out(claim):
    wrong = {line["name"]: (line["computed"], line["value"]) for line in audit.recompute(claim) if audit.differs(line)}
    assert not wrong, "(computed, stated)"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_a_claim_has_all_its_parts(claim):
    assert claim.keys() >= NEEDED
    assert claim.keys() <= ALLOWED
    assert all(isinstance(claim[name], str) and claim[name].strip() for name in NEEDED - {"said_by"})
    assert claim["chapter"] in CHAPTERS
    assert claim["verdict"] in VERDICTS
    assert claim["evidence"] in EVIDENCE
    assert claim["checked"] in CHECKED
    assert claim["why"].endswith(".") and not claim["baseline"].endswith(".")
    if "formula" not in claim:  # only a judgement has nothing to compute
        assert claim["verdict"] == claim["evidence"] == "opinion"
    else:
        assert isinstance(claim["recomputed"], int | float) and isinstance(claim["unit"], str)
        assert all(step["what"] for step in claim.get("steps", []))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim["id"])
def test_its_sources_exist(claim):
    known = audit.labels(audit.BIBLIOGRAPHY.read_text("utf-8"))
    assert claim["said_by"]
    for one in claim["said_by"]:
        if isinstance(one, dict):
            assert one.keys() == {"text", "url"} and one["url"].startswith("https://")
        else:
            assert one in known or one == "popular texts"
    named = [one for one in claim["said_by"] if one != "popular texts"]
    assert not named or claim["checked"] != "none", "a named source was read, or is known from others"


def test_ids_and_titles_are_unique():
    for field in ("id", "title"):
        assert not [name for name, n in Counter(claim[field] for claim in CLAIMS).items() if n > 1]
    assert all(re.fullmatch(r"[a-z0-9-]+", claim["id"]) for claim in CLAIMS)


def test_a_measured_claim_reads_a_committed_result():
    for claim in CLAIMS:
        formulas = " ".join(line["formula"] for line in audit.recompute(claim))
        if claim["evidence"] == "measured here":
            assert "lab(" in formulas, claim["id"]


def test_every_required_claim_has_a_verdict():
    assert not {what: ids for what, ids in REQUIRED.items() if not BY_ID.keys() >= set(ids)}
    assert len(CLAIMS) >= 40


def test_every_chapter_with_a_decoding_mechanism_has_claims():
    assert {"sliding_window", "linear", "kv_cache", "mqa", "gqa", "mla"} <= {claim["chapter"] for claim in CLAIMS}


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if "formula" in claim], ids=lambda claim: claim["id"])
def test_a_wrong_number_fails(claim):
    """Of every claim the last figure matters: a hundredth more is noticed."""
    line = audit.recompute(claim)[-1]
    assert audit.differs(line | {"value": line["value"] * 1.01 + 1e-6})
    changed = copy.deepcopy(claim)
    changed["recomputed"] = claim["recomputed"] * 1.01 + 1e-6
    assert audit.differs(audit.recompute(changed)[-1])


def test_writing_stops_at_a_wrong_number(tmp_path, monkeypatch):
    wrong = copy.deepcopy(BY_ID["mla-57x"])
    wrong["steps"][1]["value"] += 1
    source = tmp_path / "claims.yml"
    source.write_text(yaml.safe_dump([wrong]))
    monkeypatch.setattr(audit, "SOURCE", source)
    with pytest.raises(ValueError, match="mla-57x: mla = 70272, not 70273"):
        audit.records()


def test_the_json_is_up_to_date():
    assert audit.TARGET.read_text("utf-8") == audit.text(), "run `python -m scripts.claims`"


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("2 * a + b // 3 - -1", 9),
        ("a ** 2 % 5", 4),
        ("(a > b) + (a != b)", 1),
        ("mean(a, b) / sqrt(4)", 2.75),
        ('count(lab("multi_head", "heads", "labels"), "induction")', 2),
        ('kv_cache_bytes("DeepSeek-V3", 1)', 70272),
    ],
)
def test_a_formula_is_arithmetic(formula, value):
    assert audit.evaluate(formula, {"a": 3, "b": 8}) == value


@pytest.mark.parametrize(
    "formula",
    [
        "a.real",
        "__import__('os')",
        "(lambda: 1)()",
        "[x for x in a]",
        "open('x')",
        "a if a else 1",
        "unknown + 1",
        "9 ** 9 ** 9",
        "max(1, key=a)",
        "1 and 2",
        "a[0]",
        "a < b < 3",
        "None",
        "f'{a}'",
    ],
)
def test_a_formula_is_nothing_else(formula):
    with pytest.raises(ValueError, match="not allowed"):
        audit.evaluate(formula, {"a": 3, "b": 8})


def test_numbers_are_put_in():
    assert audit.put_in("2 * heads ** 2 / (a + b)", {"heads": 12345, "a": 0.5, "b": 3}) == "2 × 12,345 ^ 2 / (0.5 + 3)"
    assert audit.put_in('lab("linear", "runs", -1)', {}) == 'lab("linear", "runs", -1)'


def test_sources_are_named_by_author_and_year():
    known = audit.labels(audit.BIBLIOGRAPHY.read_text("utf-8"))
    assert known["ainslie2023"] == "Ainslie et al. 2023"
    assert known["deepseek2024"] == "DeepSeek-AI 2024"
    assert known["jain2019"] == "Jain and Wallace 2019"
