"""The published models: a strict schema, the numbers compared with transformers, the bytes with real caches."""

import copy
import datetime

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from attncourse import build
from attncourse.models import (
    all_global_bytes,
    bytes_per_token,
    cached_layers,
    find_model,
    growth,
    kind,
    kv_cache_bytes,
    load_models,
    multi_head_bytes,
    state_bytes,
)

MODELS = load_models()
TEXT = ("name", "maker", "attention", "evidence", "source", "source_date")
SIZES = ("n_layers", "hidden_size", "n_heads")
LATENT = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
KINDS = ("n_local_layers", "n_global_layers", "n_linear_layers", "n_shared_layers")
OPTIONAL = {
    **dict.fromkeys(("n_kv_heads", "head_dim", "local_n_kv_heads", "local_head_dim", "window", "max_context"), int),
    **dict.fromkeys((*LATENT, "q_lora_rank", "index_head_dim", "index_topk", *KINDS), int),
    **dict.fromkeys(("linear_state_numbers", "linear_conv_numbers"), int),
    **dict.fromkeys(("linear_state_dtype", "linear_kind", "note"), str),
    "also": list,
}


def problems(record: dict) -> list[str]:
    """What is wrong with a record, in words; empty for a right one."""
    found = [f"lacks {name}" for name in (*TEXT, *SIZES) if name not in record]
    found += [f"has an unknown key {name}" for name in sorted(set(record) - {*TEXT, *SIZES, *OPTIONAL})]
    types = {**dict.fromkeys(TEXT, str), **dict.fromkeys(SIZES, int), **OPTIONAL}
    for name, value in record.items():
        if type(value) is not types.get(name, type(value)):
            found.append(f"{name}={value!r} is not of type {types[name].__name__}")
        elif isinstance(value, int) and value < (0 if name in KINDS else 1):
            found.append(f"{name}={value} is too small")
        elif isinstance(value, str | list) and not value:
            found.append(f"{name} is empty")
    if not all(isinstance(line, str) and line for line in record.get("also", [])):
        found.append("also holds something else than texts")
    if found:
        return found
    H, G = record["n_heads"], record.get("n_kv_heads")
    attention = record["attention"]
    if attention == "MLA":
        found += [f"is MLA and lacks {name}" for name in LATENT if name not in record]
        found += [f"is MLA and has {name}" for name in ("n_kv_heads", "head_dim") if name in record]
    elif "head_dim" not in record or G is None:
        found.append(f"is {attention} and lacks n_kv_heads or head_dim")
    elif attention not in ("MHA", "MQA", "GQA"):
        found.append(f"attention={attention!r} is none of MHA, MQA, GQA, MLA")
    elif attention != ("MHA" if G == H else "MQA" if G == 1 else "GQA"):
        found.append(f"is {attention} with n_heads={H} and n_kv_heads={G}")
    elif any(H % record[name] for name in ("n_kv_heads", "local_n_kv_heads") if name in record):
        found.append(f"has n_heads={H}, which its key-value heads do not divide")
    if attention != "MLA" and any(name in record for name in (*LATENT[:3], "q_lora_rank", "index_head_dim")):
        found.append(f"is {attention} and has sizes of MLA")
    if any(name in record for name in KINDS):
        counts = [record.get(name, 0) for name in KINDS]
        if "n_global_layers" not in record or sum(counts) != record["n_layers"]:
            found.append(f"has {dict(zip(KINDS, counts, strict=True))} in n_layers={record['n_layers']}")
    for kind_name, needs in (("local", ["window"]), ("linear", ["linear_state_numbers", "linear_kind"])):
        has = bool(record.get(f"n_{kind_name}_layers"))
        found += [f"{'lacks' if has else 'has no use for'} {name}" for name in needs if has != (name in record)]
    if any(name.startswith("local_") for name in record) and not record.get("n_local_layers"):
        found.append("has sizes of local layers, and no local layer")
    if record.get("linear_state_dtype", "float32") not in ("float32", "bfloat16"):
        found.append(f"linear_state_dtype={record['linear_state_dtype']!r}")
    if record["evidence"] not in ("maker", "port", "defaults", "unsourced"):
        found.append(f"evidence={record['evidence']!r} is none of maker, port, defaults, unsourced")
    if not datetime.date(2024, 1, 1) <= datetime.date.fromisoformat(record["source_date"]) <= datetime.date.today():
        found.append(f"source_date={record['source_date']}")
    return found


@pytest.mark.parametrize("name", MODELS)
def test_records_fit_the_schema(name):
    assert problems(MODELS[name]) == []
    assert MODELS[name]["name"] == name


GEMMA, KIMI, LLAMA = "Gemma-3-27b-it", "Kimi-Linear-48B-A3B", "Llama-3.1-8B"


@pytest.mark.parametrize(
    "name, change, word",
    [
        (LLAMA, {"kv_heads": 8}, "unknown key kv_heads"),
        (LLAMA, {"n_layers": None}, "not of type int"),
        (LLAMA, {"n_layers": 0}, "too small"),
        (LLAMA, {"n_kv_heads": 32}, "is GQA with n_heads=32 and n_kv_heads=32"),
        (LLAMA, {"n_kv_heads": 5}, "do not divide"),
        (LLAMA, {"attention": "GQA+"}, "none of"),
        (LLAMA, {"window": 512}, "no use for window"),
        (LLAMA, {"kv_lora_rank": 512}, "sizes of MLA"),
        (LLAMA, {"evidence": "sure"}, "evidence"),
        (LLAMA, {"source_date": "2099-01-01"}, "source_date"),
        (GEMMA, {"n_local_layers": 51}, "in n_layers=62"),
        (KIMI, {"n_kv_heads": 32}, "is MLA and has n_kv_heads"),
        (KIMI, {"linear_state_dtype": "float"}, "linear_state_dtype"),
    ],
)
def test_the_schema_refuses(name, change, word):
    wrong = copy.deepcopy(MODELS[name]) | change
    assert any(word in problem for problem in problems(wrong)), problems(wrong)


def test_there_are_many_and_nearly_all_are_sourced():
    assert len(MODELS) >= 50
    assert {record["attention"] for record in MODELS.values()} == {"MHA", "MQA", "GQA", "MLA"}
    assert [name for name, record in MODELS.items() if record["evidence"] == "unsourced"] == ["PaLM 540B"]


# What transformers' own classes say, as defaults that are a published model.

SHAPE, HEADS = "n_layers hidden_size n_heads", "n_kv_heads head_dim"
MLA = f"{SHAPE} kv_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim"
LINEAR = "n_global_layers n_linear_layers linear_state_numbers linear_conv_numbers"
LOCAL = "window n_local_layers n_global_layers"
COMPARED = {  # model -> transformers' class, the fields compared with it
    "falcon-7b": ("FalconConfig", f"{SHAPE} {HEADS} max_context"),
    "Llama-2-7b-hf": ("LlamaConfig", f"{SHAPE} {HEADS}"),
    "Llama-4 Scout text": ("Llama4TextConfig", f"{SHAPE} {HEADS} {LOCAL}"),
    "Mistral-7B-v0.1": ("MistralConfig", f"{SHAPE} {HEADS} window"),
    "Mixtral-8x7B-v0.1": ("MixtralConfig", f"{SHAPE} {HEADS}"),
    "Ministral-3-8B": ("Ministral3Config", f"{SHAPE} {HEADS} max_context"),
    "Mistral-Small-4-119B": ("Mistral4Config", f"{MLA} q_lora_rank"),
    "Gemma-3n-E4B": ("Gemma3nTextConfig", f"{SHAPE} {HEADS} {LOCAL} n_shared_layers"),
    "Qwen3-Next-80B-A3B": ("Qwen3NextConfig", f"{SHAPE} {HEADS} {LINEAR}"),
    "Qwen3.5-35B-A3B": ("Qwen3_5MoeTextConfig", f"{SHAPE} {HEADS} {LINEAR}"),
    "Phi-3-mini-4k-instruct": ("Phi3Config", f"{SHAPE} {HEADS} max_context"),
    "OLMo-2-1124-7B": ("Olmo2Config", f"{SHAPE} {HEADS}"),
    "OLMo-3 7B": ("Olmo3Config", f"{SHAPE} {HEADS} {LOCAL}"),
    "Command-R v01": ("CohereConfig", f"{SHAPE} {HEADS}"),
    "DeepSeek-V3": ("DeepseekV3Config", f"{MLA} q_lora_rank"),
    "DeepSeek-V3.2 (DSA)": ("DeepseekV32Config", f"{MLA} q_lora_rank index_head_dim index_topk max_context"),
    "Kimi-Linear-48B-A3B": ("KimiLinearConfig", f"{MLA} linear_state_numbers linear_conv_numbers max_context"),
    "GLM-4-9B": ("GlmConfig", f"{SHAPE} {HEADS} max_context"),
    "GLM-4.5-Air": ("Glm4MoeConfig", f"{SHAPE} n_kv_heads max_context"),
    "GLM-4.7-Flash": ("Glm4MoeLiteConfig", f"{MLA} q_lora_rank"),
    "GLM-5 (glm_moe_dsa)": ("GlmMoeDsaConfig", f"{MLA} q_lora_rank index_head_dim index_topk max_context"),
    "gpt-oss-120b": ("GptOssConfig", f"{SHAPE} {HEADS} {LOCAL} max_context"),
    "MiniMax-Text-01": ("MiniMaxConfig", "n_kv_heads"),
    "MiniMax-M2": ("MiniMaxM2Config", f"{SHAPE} {HEADS}"),
    "MiMo-V2-Flash": ("MiMoV2FlashConfig", f"{SHAPE} {HEADS} v_head_dim {LOCAL}"),
}
DIFFERENT = {  # fields of both that are not compared, and why
    "max_context": "a default that the published checkpoint replaces",
    "Kimi-Linear-48B-A3B": "the default order of layers has 6 global ones, the checkpoint 7",
    "MiniMax-Text-01": "the defaults are not this model's; only its key-value heads are",
}


def theirs(config) -> dict[str, int]:
    """A transformers configuration under our names, as far as it has them."""
    names = {"n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads"}
    names |= {"max_context": "max_position_embeddings", "n_shared_layers": "num_kv_shared_layers"}
    same = ("hidden_size", *LATENT, "q_lora_rank", "head_dim", "index_head_dim", "index_topk")
    names |= {name: name for name in same}
    found = {ours: getattr(config, name, None) for ours, name in names.items()}
    found["window"] = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    if getattr(config, "multi_query", False):
        found["n_kv_heads"] = 1
    found["n_kv_heads"] = found["n_kv_heads"] or found["n_heads"]
    if found["head_dim"] is None and not isinstance(config, transformers.Glm4MoeConfig):  # 4096 / 96
        found["head_dim"] = found["hidden_size"] // found["n_heads"]
    layers = list(getattr(config, "layer_types", None) or [])
    layers = layers[: len(layers) - (found["n_shared_layers"] or 0)]
    counts = {
        "n_local_layers": ("sliding_attention", "chunked_attention"),
        "n_global_layers": ("full_attention",),
        "n_linear_layers": ("linear_attention",),
    }
    found |= {ours: sum(layer in types for layer in layers) or None for ours, types in counts.items()}
    if hasattr(config, "linear_num_value_heads"):  # the gated delta rule: keys and queries, then values
        values, keys = config.linear_num_value_heads, 2 * config.linear_num_key_heads * config.linear_key_head_dim
        found["linear_state_numbers"] = values * config.linear_key_head_dim * config.linear_value_head_dim
        width = keys + values * config.linear_value_head_dim
        found["linear_conv_numbers"] = width * config.linear_conv_kernel_dim
    if hasattr(config, "linear_num_heads"):  # Kimi delta attention: queries, keys and values of one size
        found["linear_state_numbers"] = config.linear_num_heads * config.linear_head_dim**2
        width = 3 * config.linear_num_heads * config.linear_head_dim
        found["linear_conv_numbers"] = width * config.linear_conv_kernel_dim
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("name", COMPARED)
def test_what_transformers_also_ships_agrees(name):
    record, (class_name, fields) = MODELS[name], COMPARED[name]
    other = theirs(getattr(transformers, class_name)())
    fields = fields.split()
    assert fields and {field: record[field] for field in fields} == {field: other[field] for field in fields}
    left_out = {field for field in set(record) & set(other) - set(fields) if record[field] != other[field]}
    assert left_out <= {"max_context"} or name in DIFFERENT, (left_out, DIFFERENT)


def test_every_record_that_names_a_class_is_compared_with_it():
    named = {
        name: class_name
        for name, record in MODELS.items()
        for line in [record["source"], *record.get("also", [])]
        if line.startswith("transformers ")
        for class_name in [line.split(", ")[1].split("(")[0]]
    }
    assert named.items() <= {name: class_name for name, (class_name, _) in COMPARED.items()}.items()


# Known numbers.


@pytest.mark.parametrize(
    "name, bytes_",
    [
        ("DeepSeek-V3", 61 * (512 + 64) * 2),
        ("DeepSeek-V2", 60 * 576 * 2),
        ("DeepSeek-V3.2 (DSA)", 61 * (576 * 2 + 132)),
        ("Llama-3.1-8B", 2 * 32 * 8 * 128 * 2),
        ("Gemma-3-27b-it", 496 * 1024),
        ("falcon-7b", 2 * 32 * 64 * 2),
        ("Kimi-Linear-48B-A3B", 7 * 576 * 2),  # its state is not a token's
        ("Gemma-4-31B", 2 * (50 * 16 * 2 * 256 + 10 * 4 * 2 * 512)),  # local and global layers differ
        ("MiMo-V2-Flash", 2 * (39 * 8 + 9 * 4) * (192 + 128)),  # values are shorter than keys
    ],
)
def test_bytes_a_token(name, bytes_):
    assert bytes_per_token(name) == bytes_


def test_claims_that_circulate():
    assert bytes_per_token("DeepSeek-V3") == 70_272
    assert multi_head_bytes("DeepSeek-V3", 1) == 3_997_696
    assert round(multi_head_bytes("DeepSeek-V3", 1) / bytes_per_token("DeepSeek-V3")) == 57
    assert multi_head_bytes("Gemma-4-31B", 1) == 2 * 32 * (50 * 2 * 256 + 10 * 2 * 512)
    indexed = bytes_per_token("DeepSeek-V3.2 (DSA)") / bytes_per_token("DeepSeek-V3") - 1
    assert round(100 * indexed, 1) == 11.5
    for tokens, kept, everything in ((131_072, 10.4, 62.0), (32_768, 2.91, 15.5)):
        assert kv_cache_bytes(GEMMA, tokens) / 2**30 == pytest.approx(kept, abs=0.01)
        assert all_global_bytes(GEMMA, tokens) / 2**30 == pytest.approx(everything, abs=0.01)
    for heads, gigabytes in ((32, 17.18), (8, 4.29)):
        record = {"n_layers": 32, "n_heads": 32, "n_kv_heads": heads, "head_dim": 128}
        assert kv_cache_bytes(record, 32_768) / 1e9 == pytest.approx(gigabytes, abs=0.005)
    for heads, gigabytes in ((32, 3.14), (8, 0.78)):  # 27 local layers of 1,024 and 5 global ones
        record = {"n_layers": 32, "n_kv_heads": heads, "head_dim": 128, "n_local_layers": 27, "window": 1024}
        assert kv_cache_bytes(record, 32_768) / 1e9 == pytest.approx(gigabytes, abs=0.01)


def test_six_bits_give_the_paper_s_number_of_bytes():
    assert kv_cache_bytes("DeepSeek-V2", 1, dtype=6) == 25_920


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_grows_as_its_kinds_say(name):
    record, tokens = MODELS[name], (0, 1, 100, 4096, 131_072)
    caches = [kv_cache_bytes(name, n) for n in tokens]
    assert caches == sorted(caches) and caches[0] == state_bytes(name)
    assert kv_cache_bytes(name, 4096) <= state_bytes(name) + 4096 * bytes_per_token(name)
    assert kv_cache_bytes(name, 4096, torch.float32) <= 2 * kv_cache_bytes(name, 4096) + state_bytes(name)
    full, everything = multi_head_bytes(name, 131_072), all_global_bytes(name, 131_072)
    assert full >= everything >= kv_cache_bytes(name, 131_072) - state_bytes(name)
    assert (full == everything) == (record["attention"] == "MHA")
    if "window" in record:
        W = record["window"]
        local = kv_cache_bytes(name, W + 1) - kv_cache_bytes(name, W)
        assert local < kv_cache_bytes(name, 2) - kv_cache_bytes(name, 1)
    layers = sum(part["layers"] for part in cached_layers(name))
    assert layers + record.get("n_linear_layers", 0) + record.get("n_shared_layers", 0) == record["n_layers"]


def test_dtypes_and_bits():
    record = {"n_layers": 2, "n_kv_heads": 3, "head_dim": 8}  # 96 numbers a token
    for dtype, bytes_ in ((torch.float32, 384), (torch.float16, 192), (torch.int8, 96), (torch.float8_e4m3fn, 96)):
        assert kv_cache_bytes(record, 1, dtype) == bytes_ == kv_cache_bytes(record, 1, 8 * dtype.itemsize)
    assert kv_cache_bytes(record, 1, 4) == kv_cache_bytes(record, 1, torch.uint4) == 48
    assert kv_cache_bytes(record, 10, 4.5) == 540 and kv_cache_bytes(record, 1, 0.01) == 1
    assert kv_cache_bytes("Qwen3-Next-80B-A3B", 0, 4) == 36 * (524_288 * 4 + 32_768 // 2)  # its state stays float32


def test_what_cannot_be_counted_is_named():
    good = {"n_layers": 2, "n_kv_heads": 3, "head_dim": 8}
    for change, message in (
        ({"n_layers": 0}, "n_layers=0"),
        ({"n_kv_heads": None}, "n_kv_heads=None"),
        ({"head_dim": 2.5}, "head_dim=2.5"),
        ({"n_local_layers": 1}, "window=None"),
        ({"n_local_layers": 3, "window": 4}, "n_local_layers=3, but n_layers=2"),
        ({"n_global_layers": 1}, "n_global_layers=1, but n_layers=2"),
        ({"kv_lora_rank": 8}, "qk_rope_head_dim=None"),
    ):
        with pytest.raises(ValueError, match=message):
            kv_cache_bytes(good | change, 4)
    for tokens in (-1, 1.5, True):
        with pytest.raises(ValueError, match=f"n_tokens={tokens}"):
            kv_cache_bytes(good, tokens)
    with pytest.raises(TypeError, match="'bf16'"):
        kv_cache_bytes(good, 4, "bf16")
    with pytest.raises(ValueError, match="dtype=0"):
        kv_cache_bytes(good, 4, 0)


def test_names_are_found_and_near_ones_are_offered():
    assert find_model("deepseek-V3 ")["name"] == "DeepSeek-V3"
    with pytest.raises(ValueError, match="'DeepSeek V3'; the nearest names: DeepSeek-V3"):
        find_model("DeepSeek V3")
    with pytest.raises(ValueError, match="Llama-2-7b-hf, Llama-2-70b-hf"):
        kv_cache_bytes("llama-2", 4)
    with pytest.raises(ValueError, match="the nearest names: falcon-7b, Llama-2-7b-hf"):
        find_model("7b")
    with pytest.raises(ValueError) as five:
        find_model("lamma 3")
    assert [name.strip() for name in str(five.value).split(":")[1].split(",")][:4] == [
        "Llama-3.2-1B",
        "Llama-3.1-8B",
        "Llama-3.1-70B",
        "Llama-3.1-405B",
    ]
    assert str(five.value).count(",") == 4
    with pytest.raises(ValueError, match="there is none like it"):
        find_model("%")


def test_kinds_in_words():
    for name, words in (
        (LLAMA, "GQA"),
        (GEMMA, "GQA, 52 of 62 local (1,024)"),
        (KIMI, "MLA, 20 of 27 linear"),
        ("Gemma-4-E2B", "MQA, 12 of 35 local (512), 20 of 35 shared"),
    ):
        assert kind(name) == words
    every = {
        "attention": "GQA",
        "n_layers": 9,
        "window": 8,
        "n_shared_layers": 2,
        "n_linear_layers": 3,
        "n_local_layers": 4,
    }
    assert kind(every) == "GQA, 4 of 9 local (8), 3 of 9 linear, 2 of 9 shared"


@pytest.mark.parametrize("name", [LLAMA, GEMMA, KIMI])
def test_a_second_token_costs_what_bytes_per_token_says(name):
    for dtype in (torch.float32, torch.bfloat16, 4.5):
        grown = kv_cache_bytes(name, 2, dtype) - kv_cache_bytes(name, 1, dtype)
        assert abs(grown - bytes_per_token(name, dtype)) <= 1  # half a byte is rounded up


def test_if_every_layer_kept_every_token_none_had_a_state():
    assert state_bytes(KIMI) > 0 and all_global_bytes(KIMI, 0) == 0


def test_bytes_are_whole():
    one = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "head_dim": 1}
    assert multi_head_bytes(one, 1, 4.5) == kv_cache_bytes(one, 1, 4.5) == 2  # nine bits


def test_a_scale_of_an_index_stands_for_up_to_128_numbers():
    record = {"n_layers": 2, "kv_lora_rank": 8, "qk_rope_head_dim": 4}
    for numbers, bytes_ in ((100, 104), (128, 132), (129, 137)):
        assert [part["index_bytes"] for part in cached_layers({**record, "index_head_dim": numbers})] == [bytes_]


def test_growth_is_the_calculator():
    data = growth([LLAMA, GEMMA], tokens=(1, 2048), dtype=torch.float32)
    assert data["tokens"] == [1, 2048]
    for record in data["models"]:
        assert record["bytes"] == [kv_cache_bytes(record["name"], n, torch.float32) for n in (1, 2048)]
    assert [record["name"] for record in growth()["models"]] == list(MODELS)
    assert growth(LLAMA, tokens=(2048,))["models"] == growth([LLAMA], tokens=(2048,))["models"]  # one alone


# The calculator and real caches agree to the byte: the course's own layers, and transformers' caches.

D_MODEL, N_HEADS, HEAD = 32, 4, 8
FULL = {"n_layers": 3, "n_heads": N_HEADS, "n_kv_heads": N_HEADS, "head_dim": HEAD}
RECORDS = {  # a record, and the layers that it describes
    "MHA": (FULL, [("multi_head", {})] * 3),
    "MQA": (FULL | {"n_kv_heads": 1}, [("mqa", {})] * 3),
    "GQA": (FULL | {"n_kv_heads": 2}, [("gqa", {"n_kv_heads": 2})] * 3),
    "MLA": (
        {"n_layers": 2, "kv_lora_rank": 12, "qk_rope_head_dim": 6},
        [("mla", {"kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14})] * 2,
    ),
    "local and global": (
        FULL | {"n_layers": 6, "n_kv_heads": 2, "n_local_layers": 5, "window": 16},
        [("sliding_window", {"window": 16, "n_kv_heads": 2})] * 5 + [("gqa", {"n_kv_heads": 2})],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("name", RECORDS)
def test_the_course_s_caches_have_these_bytes(name, tokens, dtype):
    record, layers = RECORDS[name]
    made = [build(mechanism, D_MODEL, N_HEADS, **options).to(dtype) for mechanism, options in layers]
    assert kv_cache_bytes(record, tokens, dtype) == sum(layer.new_cache(1, tokens).nbytes for layer in made)


TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 4, "num_hidden_layers": 4}
TINY |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
EXPERTS = {"moe_intermediate_size": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 6}
LATENT_SIZES = {"head_dim": 6, "kv_lora_rank": 12, "qk_rope_head_dim": 6, "qk_nope_head_dim": 10, "v_head_dim": 14}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
THREE_TO_ONE = ["linear_attention"] * 3 + ["full_attention"]
THEIRS = {  # transformers' type, its sizes, our record of them
    "llama": ({}, {}),
    "llama, MHA": ({"num_key_value_heads": 4}, {"n_kv_heads": 4}),
    "llama, MQA": ({"num_key_value_heads": 1}, {"n_kv_heads": 1}),
    # it keeps W - 1 tokens between steps, one less than a step attends to
    "gemma3_text": ({"sliding_window": 8, "layer_types": MIXED}, {"window": 7, "n_local_layers": 2}),
    "gemma3n_text": (
        {"sliding_window": 8, "layer_types": MIXED, "num_kv_shared_layers": 2, "laurel_rank": 4}
        | {"hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 64, "activation_sparsity_pattern": [0.0] * 4}
        | {"intermediate_size": [16] * 4},
        {"window": 7, "n_local_layers": 1, "n_global_layers": 1, "n_shared_layers": 2},
    ),
    "gemma4_text": (
        {"sliding_window": 8, "layer_types": MIXED, "global_head_dim": 12, "hidden_size_per_layer_input": 0}
        | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        {"window": 7, "n_local_layers": 2, "n_kv_heads": 1, "head_dim": 12}
        | {"local_n_kv_heads": 2, "local_head_dim": 8},
    ),
    "mimo_v2_flash": (
        {"sliding_window": 8, "layer_types": MIXED, "v_head_dim": 6, "mlp_layer_types": ["dense"] * 4},
        {"window": 7, "n_local_layers": 2, "v_head_dim": 6, "local_n_kv_heads": 4},
    ),
    "deepseek_v3": (
        LATENT_SIZES | {"num_key_value_heads": 4, "q_lora_rank": None, "first_k_dense_replace": 4},
        {"kv_lora_rank": 12, "qk_rope_head_dim": 6},
    ),
    "qwen3_next": (
        EXPERTS | DELTA | {"num_experts": 4, "shared_expert_intermediate_size": 8, "layer_types": THREE_TO_ONE},
        {"n_linear_layers": 3, "linear_state_numbers": 4 * 8 * 6, "linear_state_dtype": "float32"}
        | {"linear_conv_numbers": (2 * 2 * 8 + 4 * 6) * 4},
    ),
    "kimi_linear": (
        EXPERTS
        | LATENT_SIZES
        | {"num_key_value_heads": 4, "num_local_experts": 4, "layer_types": THREE_TO_ONE}
        | {"linear_head_dim": 8, "linear_num_heads": 4},
        {"kv_lora_rank": 12, "qk_rope_head_dim": 6, "n_linear_layers": 3, "linear_state_numbers": 4 * 8 * 8}
        | {"linear_state_dtype": "float32", "linear_conv_numbers": 3 * 4 * 8 * 4},
    ),
    "minimax": (
        EXPERTS | {"num_local_experts": 4, "layer_types": THREE_TO_ONE, "block_size": 8},
        {"n_linear_layers": 3, "linear_state_numbers": 4 * 8 * 8},
    ),
}


def stored(cache) -> int:
    """Bytes of every tensor of numbers in a transformers cache."""
    found = {}

    def look(value):
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                found[id(value)] = value.nbytes
        elif isinstance(value, dict):
            list(map(look, value.values()))
        elif isinstance(value, list | tuple):
            list(map(look, value))
        elif hasattr(value, "__dict__"):
            look(vars(value))

    look([cache.layers, getattr(cache, "linear_cache", [])])
    return sum(found.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", THEIRS)
def test_transformers_caches_have_these_bytes(name, dtype):
    changes, ours = THEIRS[name]
    config = CONFIG_MAPPING[name.split(",")[0]](**TINY | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    cache = None
    for tokens in (10, 1, 1):  # prefill, then two steps
        with torch.no_grad():
            cache = model(torch.full((1, tokens), 5), past_key_values=cache, use_cache=True).past_key_values
    record = {"n_layers": 4, "n_kv_heads": 2, "head_dim": 8} | ours
    assert stored(cache) == kv_cache_bytes(record, 12, dtype)
