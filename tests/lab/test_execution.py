import json
from dataclasses import asdict
from subprocess import CompletedProcess

import pytest
import torch

from attncourse import lab
from attncourse.lab import execution as experiment
from attncourse.lab.decoder import Decoder
from attncourse.lab.execution import (
    RUNS,
    WAYS,
    Executed,
    Request,
    Settings,
    attention_peaks,
    cache_bytes,
    call_of,
    draw_requests,
    executed,
    growth,
    inputs,
    kernel_of,
    largest_gap,
    make_model,
    offered,
    page_step_costs,
    run,
    sampled_answers,
    saved_bytes,
    serve,
    serving,
    step_peaks,
    times,
    traffic,
    train_one,
    try_flex,
)
from attncourse.multi_head import MultiHeadAttention
from attncourse.positions import RotaryEmbedding

TINY = {"steps": 3, "batch_size": 2, "length": 16, "d_model": 16, "tile": 5}


# --- ways


@pytest.mark.parametrize("way", WAYS)
def test_ways_agree_outputs_and_gradients(way):
    given = [x.detach().double().requires_grad_() for x in inputs(37, H=2, D=8)]
    torch.testing.assert_close(WAYS[way](*given), WAYS["whole"](*given))
    for one, two in zip(call_of(way, given)(), call_of("whole", given)(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("way", WAYS)
def test_a_decoder_is_the_same_model_in_every_way(way):
    torch.manual_seed(0)
    model = make_model(Settings("whole", "float64", **TINY), seed=3)
    other = make_model(Settings(way, "float64", **TINY), seed=3)
    tokens = torch.randint(256, (2, 16))
    torch.testing.assert_close(other(tokens), model(tokens))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_an_executed_layer_is_the_layer():
    layer = MultiHeadAttention(16, 2, causal=True, rotary=RotaryEmbedding(8))
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(Executed(layer, WAYS["tiled"])(x), layer(x))
    with pytest.raises(ValueError, match="no mask and no cache"):
        Executed(layer, WAYS["tiled"])(x, mask=torch.ones(9, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="alibi=True"):
        Executed(MultiHeadAttention(16, 2, causal=True, alibi=True), WAYS["tiled"])


def test_executed_leaves_the_model_as_it_was():
    model = Decoder(256, d_model=16, n_heads=2, n_layers=2)
    executed(model, "tiled", key_tile=3)
    assert all(isinstance(block.attention, MultiHeadAttention) for block in model.blocks)


def test_training_does_not_notice():
    losses = {way: train_one(Settings(way, "float64", **TINY), 1, progress=False)[1].losses for way in WAYS}
    assert all(largest_gap(losses[way], losses["whole"])[-1] < 1e-12 for way in WAYS)
    assert len(set(losses["whole"])) == 3


def test_gaps_are_the_largest_so_far():
    assert largest_gap([1, 2, 3], [1, 4, 2]) == [0, 2, 2]


# --- memory and time


def test_memory_grows_with_the_square_or_not():
    rows = attention_peaks((256, 1024), ("whole", "online", "fused"), H=1, D=8)
    assert growth(rows, "whole") > 1.9 and growth(rows, "fused") < 1.6 and growth(rows, "online") < 1.3
    tiled = attention_peaks((512, 1024), ("tiled",), H=1, D=8)
    assert tiled[1]["bytes"] - tiled[0]["bytes"] < 200 * 512  # one tile of scores in both


def test_what_is_saved_for_the_backward_pass():
    T, H, D = 64, 4, 32
    small = H * T * D * 4 + H * T * 4  # the output and a number for each row
    assert saved_bytes("tiled", T) == saved_bytes("fused", T) == small
    assert saved_bytes("whole", T) >= H * T * T * 4
    assert saved_bytes("tiled", 2 * T) == 2 * small


def test_a_step_holds_the_rest_of_the_model_too():
    rows = step_peaks((64, 128))
    held = {(row["way"], row["T"]): row["bytes"] for row in rows}
    assert held["whole", 128] > held["tiled", 128] and growth(rows, "tiled") < 1.2


def test_traffic_halves_with_twice_the_tile():
    few, many = (traffic(1024, 64, tile) for tile in (64, 128))
    ends = 2 * 2 * 1024 * 64
    assert few["tiled"] - ends == 2 * (many["tiled"] - ends) and few["whole"] == many["whole"] == 2 * (
        4 * 1024**2 + 4 * 1024 * 64
    )


def test_times_are_taken_for_every_way():
    assert all(ms > 0 for grad in (False, True) for ms in times(16, grad=grad, repeats=1).values())


def test_messages_of_the_profiler_are_dropped(capfd):
    attention_peaks((16,), ("whole",))
    assert capfd.readouterr().err == ""


# --- pages


def test_bytes_of_caches():
    held = cache_bytes([3, 10], 32, 4, G=2, D=8)
    token = 2 * 2 * 8 * 4
    assert held == {"reserved": 64 * token, "padded": 20 * token, "paged": 16 * token, "written": 13 * token}


def test_a_shared_prompt_is_stored_once():
    held = sampled_answers(10, [1, 7, 4], 4, G=1, D=2)
    block = 4 * 2 * 2 * 4
    assert held["own"] == held["named"] == (3 + 5 + 4) * block
    assert held["shared"] == (2 + 3 * 1 + 0 + 2 + 1) * block  # two full ones; three times the third; then 0, 2, 1


def test_requests_are_drawn_within_the_length():
    drawn = draw_requests(300, 1, max_length=256)
    assert all(r.prompt >= 1 and r.answer >= 1 and r.prompt + r.answer <= 256 for r in drawn)
    assert drawn == draw_requests(300, 1, max_length=256) != draw_requests(300, 2, max_length=256)


def test_serving_is_counted_by_hand():
    two = [Request(2, 2), Request(2, 2)]
    reserved = serve(two, 8, "reserved", max_length=8)
    assert reserved["steps"] == 4 and reserved["running"] == 1  # one after the other
    assert reserved["used"] == pytest.approx((3 + 4) / 2 / 8)
    for policy in ("known", "paged"):
        assert serve(two, 8, policy, max_length=8, block_size=4)["steps"] == 2
    # Six tokens of room: both begin, and in the second step there is none for the second's last token.
    tight = serve(two, 6, "paged", max_length=8, block_size=1)
    assert tight == {"steps": 3, "running": 1, "used": pytest.approx(4 / 6), "evicted": 1, "read_again": 3}


def test_blocks_as_long_as_the_longest_text_are_a_reservation():
    drawn = draw_requests(40, 0, max_length=64)
    assert serve(drawn, 256, "paged", max_length=64, block_size=64) == serve(drawn, 256, "reserved", max_length=64)


def test_every_token_is_served_once_or_read_again():
    drawn = draw_requests(50, 0, max_length=128)
    for policy in experiment.POLICIES:
        found = serve(drawn, 400, policy, max_length=128, block_size=8)
        assert 0 < found["used"] <= 1 and found["steps"] >= max(r.answer for r in drawn)
        assert policy == "paged" or found["evicted"] == found["read_again"] == 0


def test_serving_says_what_does_not_fit():
    with pytest.raises(ValueError, match="policy='first'"):
        serve([Request(1, 1)], 8, "first")
    with pytest.raises(ValueError, match="takes 16 tokens of room, but there are 15"):
        serve([Request(8, 8)], 15, "paged")


def test_a_step_on_pages_copies_what_it_reads():
    rows = page_step_costs(64, repeats=1, d_model=32)
    assert list(rows) == ["plain", "blocks, through the layer", "blocks, by paged_step"]
    cache = 2 * 64 * 2 * 4 * 4
    assert rows["plain"]["bytes"] < cache < rows["blocks, by paged_step"]["bytes"]
    assert all(row["ms"] > 0 for row in rows.values())


# --- kernels


def test_kernels_are_named():
    given = inputs(16)
    assert offered(*given)["MATH"]
    assert kernel_of(*given, is_causal=True) != "?"


def test_what_cannot_be_compiled_is_said(monkeypatch):
    assert try_flex(0.01) == (None, "stopped: compiling took longer than 0.01 s")

    def ends(*arguments, **options):
        return CompletedProcess(arguments, 1, "", "Traceback …\nRuntimeError: no compiler")

    monkeypatch.setattr(experiment.subprocess, "run", ends)
    assert try_flex() == (None, "RuntimeError: no compiler")


def test_what_was_compiled_comes_back(monkeypatch):
    said = 'a message\n{"T": 8, "ms": {"flex": 1.0}}\n'
    monkeypatch.setattr(experiment.subprocess, "run", lambda *a, **o: CompletedProcess(a, 0, said, ""))
    assert try_flex() == ({"T": 8, "ms": {"flex": 1.0}}, "")


# --- the file


def test_run_writes_and_keeps(tmp_path, capsys):
    planned = {name: Settings(way, **TINY) for name, way in (("whole, float32", "whole"), ("tiled, float32", "tiled"))}
    options = {"seeds": (0, 1), "runs": planned, "lengths": (16, 32), "n_requests": 20, "compiled": False}
    result = run(tmp_path, **options)
    assert list(result["runs"]) == [f"{name}/{seed}" for seed in (0, 1) for name in planned]
    assert json.loads((tmp_path / "execution.json").read_text()) == result
    capsys.readouterr()
    assert run(tmp_path, **options) == result
    assert capsys.readouterr().out.count("kept") == 4


def test_committed_results_are_those_of_the_experiment():
    content = lab.load_result("execution")
    assert content["runs"].keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    for key, record in content["runs"].items():
        assert record["settings"] == asdict(RUNS[key.rpartition("/")[0]]), key
        assert len(record["losses"]) == 200
    kept = [row for row in content["serving"]["result"] if row["seed"] == 0]
    for row, again in zip(kept, serving((0,)), strict=True):
        assert row["running"] == pytest.approx(again["running"], rel=0.05), row


def test_committed_results_say_what_the_chapter_says():
    content = lab.load_result("execution")

    def gap(one, other, shift=0):
        runs = content["runs"]
        pairs = [(runs[f"{one}/{s}"]["losses"], runs[f"{other}/{(s + shift) % 3}"]["losses"]) for s in range(3)]
        return max(largest_gap(*pair)[-1] for pair in pairs)

    for way in ("tiled", "fused"):
        assert gap(f"{way}, float32", "whole, float32") < 1e-5
    assert gap("tiled, float64", "whole, float64") < 1e-12
    assert gap("whole, float32", "whole, float64") > gap("tiled, float32", "whole, float32")
    assert gap("whole, float32", "whole, float32", 1) > 1e5 * gap("tiled, float32", "whole, float32")
    peaks = content["peaks"]["result"]
    assert growth(peaks, "whole") > 1.7 and growth(peaks, "tiled") < 1.05 > growth(peaks, "fused")
    held = {(row["way"], row["T"]): row["bytes"] for row in peaks}
    assert held["whole", 2048] > 10 * held["tiled", 2048]

    def mean(policy, size, what):
        rows = content["serving"]["result"]
        found = [row[what] for row in rows if row["policy"] == policy and row["block_size"] == size]
        assert len(found) == 3
        return sum(found) / 3

    assert mean("paged", 16, "running") > 1.5 * mean("known", None, "running") > 4 * mean("reserved", None, "running")
    assert mean("paged", 16, "used") > 0.95 and mean("paged", 2048, "steps") == mean("reserved", None, "steps")
    assert mean("paged", 16, "evicted") > 100  # more than every second request gives up
    again = mean("paged", 16, "read_again") / (200 * mean("paged", 16, "mean_length"))
    assert 0.3 < again < 0.45
    flex = content["flex"]["result"]
    assert flex["error"] < 1e-5 and flex["ms"]["flex"] < flex["ms"]["causal"] < flex["ms"]["mask"]
