import json
from dataclasses import asdict, replace

import pytest
import torch

from attncourse import lab
from attncourse.lab import multi_head as experiment
from attncourse.lab.corpus import from_text, load_corpus, to_text
from attncourse.lab.decoder import Decoder
from attncourse.lab.multi_head import (
    RUNS,
    STATISTICS,
    Settings,
    all_heads,
    cost_of,
    costs,
    evaluate,
    heads,
    labels,
    make_model,
    mean_outputs,
    piece_losses,
    place_weights,
    places_logits,
    places_task,
    rank_correlation,
    relations,
    removed,
    repeated_scores,
    run,
    statistics,
    train_model,
)
from attncourse.multi_head import merge_heads

SMALL = {"d_model": 12, "n_heads": 3, "n_layers": 2, "max_length": 32}


def model(seed=0, **options):
    torch.manual_seed(seed)
    return Decoder(256, **(SMALL | options)).eval()


def text(n=2000):
    return load_corpus().held_out[:n]


# --- the task and its runs


def test_places_are_the_tokens_before_nearest_first():
    tokens, answers = places_task(3, 9, 4, 5, torch.Generator().manual_seed(0))
    assert tokens.shape == (3, 9) and answers.shape == (3, 5, 4) and tokens.max() < 5
    for t in range(4, 9):
        assert torch.equal(answers[:, t - 4], torch.stack([tokens[:, t - k] for k in (1, 2, 3, 4)], -1))
    logits = places_logits(Decoder(20, **SMALL), tokens, 4)
    assert logits.shape == (3, 5, 4, 5)


def test_runs_differ_in_heads_only():
    for task in ("places", "bytes"):
        group = {name: settings for name, settings in RUNS.items() if settings.task == task}
        assert [settings.n_heads for settings in group.values()] == list(experiment.HEADS)
        assert len({replace(settings, n_heads=1) for settings in group.values()}) == 1
        states = [make_model(settings, seed=3).state_dict() for settings in group.values()]
        for state in states[1:]:
            assert all(torch.equal(state[key], value) for key, value in states[0].items())


@pytest.mark.parametrize("task", ["places", "bytes"])
def test_training_is_repeatable_and_is_evaluated(task):
    settings = Settings(task, 2, 1, steps=8, batch_size=4, length=12, d_model=8, n_places=2, n_symbols=3)
    (one, a), (two, b) = (train_model(settings, seed=1, progress=False) for _ in range(2))
    assert a.losses == b.losses and len(a.losses) == 8
    found = evaluate(one, settings, 500)
    assert found == evaluate(two, settings, 500) and 0 <= found["exact"] <= 1
    if task == "bytes":
        assert 0 < found["loss"] < 8
    else:
        assert len(found["by_place"]) == 2 and found["exact"] <= min(found["by_place"]) + 1e-9


def test_place_weights_are_means_by_distance():
    settings = Settings("places", 2, 1, steps=1, batch_size=4, length=12, d_model=8, n_places=3, n_symbols=3)
    net = make_model(settings)
    tokens, _ = places_task(256, 12, 3, 3, torch.Generator().manual_seed(1_000_000))
    with torch.no_grad():
        _, (weights,) = net(tokens, return_weights=True)
    for head, row in enumerate(place_weights(net, settings)):
        for place, weight in enumerate(row, 1):
            expected = sum(weights[:, head, i, i - place].mean().item() for i in range(3, 12)) / 9
            assert weight == pytest.approx(expected, abs=1e-4)


def test_costs_count_the_same_for_any_number_of_heads():
    rows = costs((1, 2, 4), B=2, T=6, d_model=8, repeats=1)
    assert {row["multiply_adds"] for row in rows} == {2 * (4 * 6 * 8 * 8 + 2 * 6 * 6 * 8)}
    assert {row["parameters"] for row in rows} == {4 * 8 * 8}
    assert [row["weights"] for row in rows] == [2 * H * 36 for H in (1, 2, 4)]
    assert all(row["explicit_ms"] > 0 and row["fused_ms"] > 0 for row in rows)


# --- the statistics


def test_relations_by_hand():
    written = "if a:\n  a = a\n"
    found = relations(from_text(written)[None])
    assert found.keys() == STATISTICS.keys()

    def keys(name, i):
        return found[name][0, i].nonzero().flatten().tolist()

    i = 12  # the last a
    assert written[i] == "a"
    assert keys("self", i) == [12] and keys("previous", i) == [11] and keys("near", i) == list(range(4, 11))
    assert keys("first", i) == [0] and keys("first", 0) == []
    assert keys("same", i) == [3, 8] and keys("after same", i) == [4, 9]
    assert keys("newline", i) == [5] and keys("indent", i) == [6, 7]


def test_after_the_first_same_byte_stands_the_byte_itself():
    found = relations(from_text("aab")[None])
    assert found["after same"][0, 1].tolist() == [False, False, False]  # only earlier keys count
    assert found["after same"][0].sum() == 0 and found["same"][0, 1].tolist() == [True, False, False]


def test_statistics_are_shares_of_the_weights():
    net, tokens = model(), text(96).long().view(3, 32)
    found = statistics(net, tokens, first=5)
    with torch.no_grad():
        _, weights = net(tokens, return_weights=True)
    masks = relations(tokens)
    for name in STATISTICS:
        for layer, head in all_heads(net):
            share = (weights[layer][:, head, 5:] * masks[name][:, 5:]).sum(-1).mean()
            assert found["weight"][name][layer][head] == pytest.approx(share.item(), abs=1e-4)
    assert found["even"]["previous"] == pytest.approx(sum(1 / (i + 1) for i in range(5, 32)) / 27, abs=1e-4)
    assert all(1 <= keys <= 32 for row in found["keys"] for keys in row)
    even = model()
    with torch.no_grad():
        for block in even.blocks:
            block.attention.q_proj.weight.zero_()
    found = statistics(even, tokens, first=5)
    for name, row in found["weight"].items():
        assert torch.tensor(row).flatten().tolist() == pytest.approx([found["even"][name]] * 6, abs=2e-4)
    assert found["keys"][0][0] == pytest.approx(sum(range(6, 33)) / 27, abs=1e-3)
    assert found["distance"][0][0] == pytest.approx(sum(i / 2 for i in range(5, 32)) / 27, abs=1e-3)


class Fixed(torch.nn.Module):
    """One layer of two heads with known weights: what followed the earlier copy, and the copy."""

    def __init__(self, half):
        super().__init__()
        self.half, self.unused = half, torch.nn.Parameter(torch.zeros(()))

    def forward(self, tokens, return_weights):
        B, T = tokens.shape
        weights = torch.zeros(B, 2, T, T)
        for i in range(self.half, T):
            weights[:, 0, i, i - self.half + 1] = 0.75
            weights[:, 1, i, i - self.half] = 1
        return None, [weights]


def test_repeated_scores_find_the_stripe():
    assert repeated_scores(Fixed(6), n=2, half=6) == {"induction": [[0.75, 0.0]], "duplicate": [[0.0, 1.0]]}


def test_labels_follow_the_rules():
    quiet = {name: [[0.01] * 5] for name in STATISTICS}
    found = {"weight": quiet, "even": dict.fromkeys(STATISTICS, 0.02), "keys": [[5.0, 5.0, 5.0, 60.0, 5.0]]}
    quiet["previous"][0] = [0.5, 0.1, 0.1, 0.1, 0.5]
    quiet["near"][0] = [0.01, 0.65, 0.01, 0.01, 0.01]
    repeated = {"induction": [[0.0, 0.0, 0.0, 0.0, 0.2]], "duplicate": [[0.0] * 5]}
    assert labels(found, repeated) == [["byte before", "last few bytes", "mixed", "spread out", "induction"]]


# --- removing heads


def test_removed_is_the_sum_without_these_heads():
    net, tokens = model().double(), text(40).long().view(2, 20)
    attention, seen = net.blocks[1].attention, []
    hook = attention.o_proj.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        whole = net(tokens)
        hook.remove()
        rows = attention.o_proj.weight.T.unflatten(0, (3, 4))  # (3, 4, 12)
        output = seen[0].unflatten(-1, (3, 4))
        outputs = {}
        hook = attention.register_forward_hook(lambda module, given, result: outputs.update(now=result))
        for gone in ([0], [1], [0, 2], [0, 1, 2]):
            kept = [head for head in range(3) if head not in gone]
            with removed(net, [(1, head) for head in gone]):
                net(tokens)
            expected = torch.einsum("bthd,hdm->btm", output[:, :, kept], rows[kept])
            torch.testing.assert_close(outputs["now"], expected, rtol=0, atol=1e-12)
        hook.remove()
        assert torch.equal(net(tokens), whole)  # nothing is left behind
    assert merge_heads(output.transpose(1, 2)).shape == (2, 20, 12)


def test_removed_leaves_nothing_behind_after_an_error():
    net, tokens = model(), text(20).long()[None]
    whole = net(tokens)
    with pytest.raises(RuntimeError), removed(net, all_heads(net)):
        assert not torch.equal(net(tokens), whole)
        raise RuntimeError
    assert torch.equal(net(tokens), whole)


def test_the_mean_in_its_place_changes_nothing_where_the_head_is_constant():
    net, tokens = model(), text(60).long().view(3, 20)
    means = mean_outputs(net, tokens)
    assert means.shape == (2, 3, 4)
    with torch.no_grad():
        net.blocks[0].attention.v_proj.weight.zero_()
        whole = net(tokens)
        with removed(net, [(0, 1)], torch.zeros(2, 3, 4)):
            assert torch.equal(net(tokens), whole)
        with removed(net, [(0, 1)], torch.ones(2, 3, 4)):
            assert not torch.allclose(net(tokens), whole)


def test_piece_losses_average_to_the_held_out_loss():
    net = model()
    losses = piece_losses(net, text(), length=32)
    from attncourse.lab.language import held_out_loss

    assert losses.mean().item() == pytest.approx(held_out_loss(net, 2000, 32), abs=1e-6)
    cost, error = cost_of(net, [], text(), piece_losses(net, text()))
    assert cost == 0 and error == 0


def test_rank_correlation():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 25, 100]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    ties = rank_correlation([1, 2, 2, 3], [1, 3, 3, 2])  # ranks 1, 2.5, 2.5, 4 and 1, 3.5, 3.5, 2
    assert ties == pytest.approx(1 / 3)


def test_heads_reports_every_head():
    net = model(max_length=256)
    found = heads(net, n_looked=2, n_removed=1200, counts=(1, 6, 9))
    assert [len(row) for row in found["single"]["cost"]] == [3, 3]
    assert found["several"]["counts"] == [1, 6]  # no more than there are
    everything = [row[-1] for row in found["several"]["cost"].values()]
    assert max(everything) - min(everything) < 1e-3  # all gone is all gone, in any order
    order = [tuple(place) for place in found["several"]["order"]]
    assert sorted(order) == all_heads(net)
    cost = [found["single"]["cost"][layer][head] for layer, head in order]
    assert cost == sorted(cost)
    assert json.loads(json.dumps(found)) == found


# --- the files


def test_run_writes_and_keeps(tmp_path, capsys):
    small = Settings("places", 1, 1, steps=2, batch_size=4, length=8, d_model=8, n_places=2, n_symbols=3)
    runs = {"places, H = 1": small, "bytes, H = 1": replace(small, task="bytes", length=16)}
    result = run(tmp_path, seeds=(0, 1), runs=runs, n_bytes=400, with_heads=False)
    assert list(result["runs"]) == [f"{name}/{seed}" for name in runs for seed in (0, 1)]
    assert result["runs"]["bytes, H = 1/0"]["corpus"] == load_corpus().provenance()
    capsys.readouterr()
    assert run(tmp_path, seeds=(0, 1), runs=runs, n_bytes=400, with_heads=False) == result
    assert capsys.readouterr().out.count("kept") == 4


def test_committed_results_are_those_of_the_experiment():
    committed = lab.load_result("multi_head")
    assert committed["runs"].keys() == {f"{name}/{seed}" for name in RUNS for seed in (0, 1, 2)}
    for key, record in committed["runs"].items():
        assert record["settings"] == asdict(RUNS[record["model"]]), key
    found = committed["heads"]
    assert found["labels"] == labels(found["statistics"], found["repeated"])


def test_committed_results_say_what_the_chapter_says():
    committed = lab.load_result("multi_head")

    def runs(task, key, H):
        return [committed["runs"][f"{task}, H = {H}/{seed}"][key] for seed in (0, 1, 2)]

    assert max(runs("places", "exact", 1)) < 0.2 < 0.8 < min(runs("places", "exact", 2))
    assert min(runs("places", "exact", 4)) > 0.98
    by_seed = list(zip(*(runs("bytes", "loss", H) for H in experiment.HEADS), strict=True))
    for one, two, four, eight in by_seed:  # four are best in every seed
        assert four < min(one, two, eight) and 0.025 < one - four < 0.055
    assert sum(eight - one for one, _, _, eight in by_seed) > 0

    found = committed["heads"]
    every, weight = all_heads(model(d_model=128, n_heads=8, n_layers=4)), found["statistics"]["weight"]
    near = sum(torch.tensor(weight[name]) for name in ("self", "previous", "near"))
    assert near.mean() > 0.5 and torch.tensor(weight["first"]).max() < 0.01
    named = {place: found["labels"][place[0]][place[1]] for place in every}
    assert [place for place, label in named.items() if label == "induction"] == [(2, 6), (3, 6)]
    assert [label for (layer, _), label in named.items() if layer == 1].count("byte before") >= 2

    stated = [(weight["after same"], 0.31, 0.26), (found["repeated"]["induction"], 0.066, 0.025)]
    for grid, stronger, weaker in stated:
        assert (grid[2][6], grid[3][6]) == (pytest.approx(stronger, abs=0.005), pytest.approx(weaker, abs=0.005))
    assert found["statistics"]["even"]["after same"] == pytest.approx(0.08, abs=0.005)
    assert torch.tensor(weight["first"]).max() < 0.0035 < found["statistics"]["even"]["first"] < 0.0075

    single, order = found["single"], [tuple(place) for place in found["several"]["order"]]
    assert named[order[0]] == named[order[-1]] == "byte before"  # cheapest and dearest
    assert all(order.index(place) >= 16 for place in ((2, 6), (3, 6))) and order[-1] != (2, 6)
    cost, keys = (torch.tensor(grid).flatten() for grid in (single["cost"], found["statistics"]["keys"]))
    assert abs(rank_correlation((1 / keys).tolist(), cost.tolist())) < 0.2
    averaged = torch.tensor(single["cost_of_the_mean"]).flatten()
    assert rank_correlation(averaged.tolist(), cost.tolist()) > 0.95
    assert 0.6 < (averaged[cost.argmax()] / cost.max()).item() < 0.72
    several = found["several"]
    at = several["counts"].index(8)
    assert several["cost"]["cheapest first"][at] > 2 * several["sum_of_single, cheapest first"][at]
    assert all(min(left) > 0.1 for left in several["one_left"].values())


def test_committed_heads_are_those_of_the_committed_model():
    from attncourse.lab.language import load_language_model

    net, trained_on = load_language_model()
    found = lab.load_result("multi_head")["heads"]
    assert found["model"] == trained_on
    if load_corpus().sha256 != found["corpus"]["sha256"]:
        pytest.skip("this Python's library has another text")
    assert experiment.PASSAGE in to_text(load_corpus().held_out)
    now = repeated_scores(net, n=4)["induction"]
    assert torch.tensor(now).argmax() == torch.tensor(found["repeated"]["induction"]).argmax()
