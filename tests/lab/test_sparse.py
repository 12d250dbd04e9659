import json
from dataclasses import replace

import pytest
import torch

from attncourse import lab
from attncourse.lab.corpus import load_corpus
from attncourse.lab.decoder import Decoder
from attncourse.lab.sparse import (
    CONNECTED,
    RUNS,
    Settings,
    best_keys,
    connectivity,
    costs,
    evaluate,
    hops,
    in_words,
    keep_best,
    lookup_logits,
    lookup_task,
    make_model,
    mass_of_k,
    run,
    train_model,
)
from attncourse.lab.training import seeded
from attncourse.masks import sliding_window_mask
from attncourse.patterns import Dilated, Fixed, GlobalTokens, RandomBlocks, Strided, Window, pattern_mask

SMALL = {"n_pairs": 4, "n_values": 3, "steps": 3, "batch_size": 2, "d_model": 16, "n_heads": 2}


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(12, d_model=16, n_heads=2, n_layers=2).eval()


# --- the task


def test_lookup_task_asks_for_the_value_of_a_key_that_stands_where_it_says():
    tokens, answers, asked = lookup_task(6, 5, 3, seeded(1, 0))
    assert tokens.shape == (6, 10) and answers.shape == asked.shape == (6, 5)
    pairs, questions = tokens[:, :5] - 5, tokens[:, 5:]
    assert (pairs // 3).sort(-1).values.tolist() == [[0, 1, 2, 3, 4]] * 6  # every key once
    of_question = pairs.gather(1, asked)
    assert torch.equal(of_question // 3, questions) and torch.equal(of_question % 3, answers)
    assert tokens.max() < 5 * (1 + 3)


def test_models_differ_in_what_they_see_alone():
    states = [make_model(replace(settings, **SMALL), 1).state_dict() for settings in RUNS.values()]
    assert all(torch.equal(value, states[0][name]) for state in states for name, value in state.items())
    assert all(state.keys() == states[0].keys() for state in states)


def test_a_pattern_hides_what_it_does_not_see():
    """What no number of the model's layers reaches changes no answer."""
    settings = Settings((Window(2),), **SMALL)
    model = make_model(settings).eval()
    tokens, *_ = lookup_task(2, 4, 3, seeded(0, 0))
    changed = tokens.clone()
    changed[:, 0] = 4 + (tokens[:, 0] - 3) % 12
    before, after = (lookup_logits(model, x, settings)[:, -1] for x in (tokens, changed))
    assert torch.equal(before, after)
    dense = replace(settings, pattern=None)
    model = make_model(dense).eval()
    assert not torch.equal(*(lookup_logits(model, x, dense)[:, -1] for x in (tokens, changed)))


def test_training_is_repeatable_and_evaluation_counts_every_question():
    settings = Settings((Window(2), Strided(3)), **SMALL | {"steps": 6})
    (model, one), (_, two) = (train_model(settings, 2, progress=False) for _ in range(2))
    assert one.losses == two.losses
    found = evaluate(model, settings, n=100)
    assert len(found["by_distance"]) == 2 and 0 <= found["exact"] <= 1
    assert sum(share for share, _ in found["by_hops"].values()) == pytest.approx(1, abs=1e-3)
    whole = sum(share * recalled for share, recalled in found["by_hops"].values() if recalled is not None)
    assert whole == pytest.approx(found["exact"], abs=1e-3)
    assert found["keys_per_question"] == pytest.approx(
        pattern_mask(8, pattern=settings.pattern)[4:].sum().item() / 4, abs=0.01
    )


def test_settings_are_plain_values():
    record = Settings((Window(5), RandomBlocks(3, 1))).record()
    assert json.loads(json.dumps(record)) == record and record["pattern"] == "Window(5) + RandomBlocks(3, 1, 0)"
    assert in_words((Dilated(8, 4), GlobalTokens((0, 1)))) == "Dilated(8, 4) + GlobalTokens((0, 1))"


# --- selection


def test_best_keys_are_the_highest_scores_before():
    query, key = torch.randn(2, 3, 9, 4, generator=seeded(0, 0)).unbind(0)
    kept, scores = best_keys(query, key, 4), query @ key.mT
    for head in range(3):
        for i in range(9):
            wanted = sorted(range(i + 1), key=lambda j: -scores[head, i, j].item())[:4]
            assert kept[head, i].nonzero().flatten().tolist() == sorted(wanted)


def test_keeping_all_keys_changes_nothing_and_keeping_few_does():
    model, tokens = decoder(), torch.randint(12, (2, 10), generator=seeded(0, 0))
    expected = model(tokens)
    torch.testing.assert_close(keep_best(model, 10)(tokens), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(keep_best(model, 2)(tokens), expected, atol=1e-3)
    torch.testing.assert_close(model(tokens), expected)  # a copy was changed


def test_mass_of_k_is_that_of_sorted_weights():
    model, tokens = decoder(), torch.randint(12, (3, 10), generator=seeded(1, 0))
    found = mass_of_k(model, tokens, ks=(1, 3, 10), first=4)
    _, layers = model(tokens, return_weights=True)
    rows = layers[1][:, 1, 4:].detach()  # (B, 6, 10)
    best = sum(sum(sorted(row, reverse=True)[:3]) for batch in rows.tolist() for row in batch) / 18
    last = sum(sum(row[i - 2 : i + 1]) for batch in rows.tolist() for i, row in enumerate(batch, 4)) / 18
    assert found["best 3"][1, 1].item() == pytest.approx(best, abs=1e-5)
    assert found["last 3"][1, 1].item() == pytest.approx(last, abs=1e-5)
    torch.testing.assert_close(found["best 10"], torch.ones(2, 2))


# --- hops


def by_search(mask: torch.Tensor) -> list[list[int]]:
    rows, seen = [], mask.tolist()
    for i in range(len(seen)):
        layers, front = {i: 0}, [i]
        while front:
            reached = {j: layers[k] + 1 for k in front for j, sees in enumerate(seen[k]) if sees and j not in layers}
            layers, front = layers | reached, list(reached)
        rows.append([layers.get(j, -1) for j in range(len(seen))])
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_hops_are_those_of_a_search(seed):
    mask = torch.rand(11, 11, generator=seeded(seed, 0)) < 0.15
    assert hops(mask).tolist() == by_search(mask)


def test_connectivity_of_a_window_is_its_formula():
    found = connectivity((Window(6),), T=40)
    assert found["largest"] == -(-39 // 5) and found["all"]
    assert found["keys"] == sliding_window_mask(40, window=6).sum().item() / 40
    back = [-(-d // 5) for i in range(40) for d in range(1, i + 1)]
    assert found["mean"] == pytest.approx(sum(back) / len(back))
    assert found["shares"][1] == pytest.approx(sum(n <= 2 for n in back) / len(back))


def test_what_the_chapter_says_of_hops():
    found = {name: connectivity(parts) for name, parts in CONNECTED.items()}
    assert all(22 < row["keys"] < 24 for row in found.values())
    assert [name for name, row in found.items() if row["all"] and row["largest"] == 2] == [
        "window + stride",
        "window + fixed",
    ]
    assert found["window"]["largest"] == 12 and found["window + global"]["largest"] == 17
    assert found["window + random"]["largest"] == 9 and not found["dilated"]["all"]
    assert found["dilated"]["shares"][-1] == pytest.approx(0.25, abs=0.01)
    both = connectivity((Window(8), GlobalTokens((0, 1, 2, 3))), causal=False)
    assert both["all"] and both["largest"] == 2 and 22 < both["keys"] < 24
    for stride in (4, 5, 6, 8):  # the mask lab: two layers reach all from W = stride on
        last = [hops(pattern_mask(24, pattern=[Window(W), Strided(stride)]))[-1].max() for W in range(2, 9)]
        assert [layers <= 2 for layers in last] == [stride <= W for W in range(2, 9)]


# --- cost


def test_costs_count_pairs_and_tiles_score_few():
    pattern = (Window(16), Strided(16))
    rows = costs(256, pattern, repeats=1, H=2, D=8)
    assert rows["dense, causal"]["pairs"] == 256 * 257 // 2
    seen = pattern_mask(256, pattern=pattern).sum().item()
    tiles = rows["the pattern in tiles"]
    assert tiles["seen"] == seen <= tiles["pairs"] < 256 * 256 // 4
    assert all(row["ms"] > 0 and row["bytes"] > 0 for row in rows.values())


# --- the files


def test_run_writes_and_keeps(tmp_path, capsys):
    runs = {"a": Settings((Fixed(4, 1),), **SMALL), "b": Settings(top_k=2, **SMALL)}
    arguments = {"seeds": (0, 1), "runs": runs, "parts": {"byte_model": lambda: {"kept": []}}}
    result = run(tmp_path, **arguments)
    written = json.loads((tmp_path / "sparse.json").read_text())
    assert written == json.loads(json.dumps(result)) and list(written["runs"]) == ["a/0", "a/1", "b/0", "b/1"]
    assert written["byte_model"]["corpus"] == load_corpus().provenance()
    capsys.readouterr()
    assert run(tmp_path, **arguments) == written
    assert capsys.readouterr().out.count("kept") == 4


def test_committed_results_are_those_of_the_experiment():
    committed = lab.load_result("sparse")
    assert committed["runs"].keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    for key, record in committed["runs"].items():
        assert record["settings"] == RUNS[record["model"]].record(), key
    assert committed["byte_model"]["date"] and len(committed["byte_model"]["mass"]["best 8"]) == 4


def test_committed_results_say_what_the_chapter_says():
    committed = lab.load_result("sparse")

    def runs(name):
        return [committed["runs"][f"{name}/{seed}"] for seed in (0, 1, 2)]

    def recalled(name, hops):
        return [run["by_hops"][hops][1] for run in runs(name)]

    LONG = "window + stride, four times as long"
    assert min(run["exact"] for run in runs("dense")) > 0.995
    assert all(0.96 < run["exact"] < 0.975 for run in runs("top-8"))
    assert all(0.68 < run["exact"] < 0.755 for run in runs("top-2"))
    patterns = [name for name, settings in RUNS.items() if settings.pattern is not None and settings.steps == 400]
    for name in patterns:
        assert 0.12 < sum(run["exact"] for run in runs(name)) / 3 < 0.345
        for found in runs(name):
            share, further = found["by_hops"]["more"]
            assert share == 0 or 0.115 < further < 0.135
            share, two = found["by_hops"]["2"]
            assert share == 0 or 0.105 < two < 0.26
            assert two is None or two < found["by_hops"]["1"][1]
            assert 6.4 < found["keys_per_question"] < 8.6
    dilated, strided = (sum(run["exact"] for run in runs(name)) / 3 for name in ("dilated", "window + stride"))
    assert 0 < strided - dilated < 0.02  # almost as much
    assert runs("dilated")[0]["by_hops"]["more"][0] == pytest.approx(0.75, abs=0.01)
    shares = runs("window + stride")[0]["by_hops"]
    assert shares["1"][0] + shares["2"][0] == pytest.approx(0.85, abs=0.01)
    assert runs("window")[0]["exact"] < 0.14 < 0.2 < min(run["exact"] for run in runs("window")[1:])
    assert min(recalled(LONG, "2")) < 0.2 < 0.3 < sorted(recalled(LONG, "2"))[1]  # one seed stuck
    assert all(0.47 < two < 0.53 for two in recalled(f"{LONG}, half the rate", "2"))
    assert min(recalled(f"{LONG}, half the rate", "1")) > 0.98

    found = committed["byte_model"]
    kept = {row["k"]: row for row in found["kept"]}
    assert abs(kept[8]["best"] - found["loss"]) < 0.002 and found["loss"] == pytest.approx(1.235, abs=5e-4)
    assert kept[8]["best"] == pytest.approx(1.234, abs=5e-4)
    assert kept[8]["last"] - found["loss"] == pytest.approx(0.31, abs=0.006) and kept[64]["last"] > found["loss"] + 0.03
    assert found["loss"] - kept[16]["best"] == pytest.approx(0.004, abs=5e-4)
    best = torch.tensor(found["mass"]["best 8"])
    assert best.mean() == pytest.approx(0.83, abs=0.005) and best.min() == pytest.approx(0.51, abs=0.005)
