import json
from dataclasses import replace

import pytest
import torch

from attncourse import lab
from attncourse.cross_attention import CrossAttention
from attncourse.lab import bahdanau as first
from attncourse.lab import scenes
from attncourse.lab.alignment import alignment, crossing, evaluate
from attncourse.lab.cross_attention import (
    RUNS,
    SHOWN_RUN,
    Settings,
    TransformerTranslator,
    multiply_adds,
    remember,
    run,
    step_functions,
    train_translator,
)
from attncourse.lab.numbers import BOS, EOS, PAD, encode, vocabulary

NUMBERS = [7, 421, 42_042, 1_000_021, 380]
SMALL = {"n_train": 40, "n_test": 21, "max_digits": 5}
FEW = {"n_train": 30, "n_test": 12}


def translator(seed=0):
    torch.manual_seed(seed)
    return TransformerTranslator(len(vocabulary("en")), len(vocabulary("de")), d_model=8).double().eval()


def layer(seed=0):
    torch.manual_seed(seed)
    return CrossAttention(6, 5, 4).double(), torch.randn(2, 3, 6).double(), torch.randn(2, 7, 5).double()


def test_remember_is_the_layer_with_its_gradients():
    cross, x, context = layer()
    mask = (torch.arange(7) < torch.tensor([[7], [4]]))[:, None]
    x.requires_grad_()
    context.requires_grad_()
    outputs, gradients = [], []
    for output, weights in (cross(x, context, mask, return_weights=True), remember(cross, context, mask)(x)):
        outputs.append((output, weights))
        gradients.append(torch.autograd.grad(output.square().sum(), [x, context, *cross.parameters()]))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-11)


def test_decode_is_the_equations_written_by_hand():
    model, batch = translator(), encode([421], "de")
    logits, weights = model.decode(batch.source, batch.source_mask, batch.target[:, :-1])

    def norm(x, module):
        return module.weight * x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    def attend(module, x, context, causal=False):
        scores = module.q_proj(x) @ module.k_proj(context).T / 8**0.5
        if causal:
            scores = scores + torch.full(scores.shape, float("-inf")).triu(1)
        return module.o_proj(scores.softmax(-1) @ module.v_proj(context)), scores.softmax(-1)

    def places(n):
        angles = torch.arange(n).double()[:, None] / 10000 ** (torch.arange(0, 8, 2).double() / 8)
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()

    x = model.source_embedding(batch.source[0]) + places(4)
    for block in model.encoder:
        y = norm(x, block.attention_norm)
        x = x + attend(block.attention, y, y)[0]
        x = x + block.network(norm(x, block.network_norm))
    states = norm(x, model.encoder_norm)
    target = batch.target[0, :-1]
    x = model.target_embedding(target) + places(len(target))
    for block in model.decoder:
        y = norm(x, block.attention_norm)
        x = x + attend(block.attention, y, y, causal=True)[0]
        found, expected_weights = attend(block.cross, norm(x, block.cross_norm), states)
        x = x + found
        x = x + block.network(norm(x, block.network_norm))
    torch.testing.assert_close(logits[0], model.output(norm(x, model.decoder_norm)), rtol=0, atol=1e-11)
    torch.testing.assert_close(weights[0], expected_weights, rtol=0, atol=1e-11)


def test_padding_changes_nothing():
    model, batch = translator(), encode(NUMBERS, "de")
    logits, weights = model.decode(batch.source, batch.source_mask, batch.target[:, :-1])
    for row, number in enumerate(NUMBERS):
        alone = encode([number], "de")
        T, S = alone.target.shape[1] - 1, alone.source.shape[1]
        expected, expected_weights = model.decode(alone.source, alone.source_mask, alone.target[:, :-1])
        torch.testing.assert_close(logits[row, :T], expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(weights[row, :T, :S], expected_weights[0], rtol=0, atol=1e-12)
        assert not weights[row, :, S:].any()


@pytest.mark.parametrize("shown_layer", [0, -1])
def test_translate_feeds_its_own_tokens_back(shown_layer):
    model, batch = translator(seed=3), encode(NUMBERS, "de")
    model.shown_layer = shown_layer
    tokens, weights = model.translate(batch.source, batch.source_mask, max_length=9)
    fed = torch.cat([torch.full_like(tokens[:, :1], BOS), tokens[:, :-1]], 1)
    logits, expected_weights = model.decode(batch.source, batch.source_mask, fed)
    ended = (tokens == EOS).cumsum(1) - (tokens == EOS).long() > 0
    assert torch.equal(tokens, logits.argmax(-1).masked_fill(ended, PAD))
    torch.testing.assert_close(weights[~ended], expected_weights[~ended], rtol=0, atol=1e-12)


def test_translate_stops_when_all_have_ended():
    model, batch = translator(), encode(NUMBERS, "de")
    with torch.no_grad():
        model.output.bias[EOS] = 1e3
    tokens, weights = model.translate(batch.source, batch.source_mask)
    assert tokens.tolist() == [[EOS]] * len(NUMBERS) and weights.shape == (5, 1, batch.source.shape[1])


def test_only_the_cross_attention_carries_the_source():
    model, batch = translator(), encode([421, 423], "de")
    with torch.no_grad():
        for block in model.decoder:
            block.cross.o_proj.weight.zero_()
    logits = model(batch.source, batch.source_mask, batch.target[:1, :-1].expand(2, -1))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)


def test_it_has_as_many_parameters_as_bahdanaus_about():
    sizes = len(vocabulary("en")), len(vocabulary("de"))
    ours = sum(p.numel() for p in TransformerTranslator(*sizes).parameters())
    assert abs(ours - lab.load_result("bahdanau")["runs"]["de/attention/0"]["parameters"]) < 500


def test_chapter_01s_measures_take_it():
    model, batch = translator().float(), encode(NUMBERS, "de")
    assert evaluate(model, batch)["sentences"] == 5
    assert crossing(model, batch)["pairs"] == 4
    assert all(abs(sum(row) - 1) < 1e-3 for row in alignment(model, 421, "de")["weights"])


def test_training_lowers_the_loss_and_repeats():
    pairs = first.load_pairs("de", **SMALL)
    settings = Settings(steps=30, batch_size=16, d_model=8)
    _, history = train_translator(pairs, settings, seed=1, progress=False)
    assert history.losses[-1] < 0.8 * history.losses[0]
    assert train_translator(pairs, settings, seed=1, progress=False)[1].losses == history.losses


@pytest.mark.parametrize("S", [5, 40])
def test_a_step_costs_what_the_chapter_says(S):
    steps = step_functions(1, S, size=16)
    torch.testing.assert_close(steps["anew"](), steps["once"]())
    assert multiply_adds(steps["once"]) == 2 * S * 16 + 2 * 16 * 16
    assert multiply_adds(steps["anew"]) == multiply_adds(steps["once"]) + 2 * S * 16 * 16


# --- images


def test_patches_are_cut_row_by_row():
    images = torch.randn(2, 3, 6, 8)
    found = scenes.patches(images, 2)
    assert found.shape == (2, 12, 12)
    for row in range(3):
        for column in range(4):
            patch = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(found[:, 4 * row + column], patch.flatten(1))


def test_an_image_shows_its_scene():
    scene = scenes.Scene(((5, "red", "circle"), (14, "blue", "square")))
    cut = scenes.patches(scenes.draw(scene, torch.Generator().manual_seed(0))[None], scenes.P)[0]
    bright = [i for i, patch in enumerate(cut) if patch.max() > 0.5]
    assert bright == [5, 14] and cut.min() >= 0 and cut.max() <= 1
    red, _, blue = cut[5].view(3, -1).mean(-1)
    assert red > 1.5 * blue


def test_questions_have_the_answers_of_their_scenes():
    asked = scenes.make(90, seed=4)
    for scene, text, answer, kind in zip(asked.scenes, asked.texts, asked.answers, asked.kinds, strict=True):
        named = [scenes.ANSWERS[answer], *text.split()]
        objects = [(colour, shape) for _, colour, shape in scene.objects]
        together = any(colour in named and shape in named for colour, shape in objects)
        assert together == (named[0] != "no"), text
        assert scenes.KINDS[kind] in (named[2], "both")
        assert len({place for place, *_ in scene.objects}) == len(objects) in (2, 3)
    said = [scenes.ANSWERS[a] for a, kind in zip(asked.answers, asked.kinds, strict=True) if kind == 2]
    assert 5 < said.count("yes") < 25
    again = scenes.make(90, seed=4)
    assert torch.equal(asked.images, again.images) and asked.texts == again.texts


def test_the_reader_ignores_padding_and_the_order_of_patches():
    torch.manual_seed(0)
    model, asked = scenes.Reader().double(), scenes.make(6, seed=1)
    image = model.look(asked.images.double())
    logits, weights = model.read(image, asked.words, asked.words_mask)
    assert torch.equal(logits, model(asked.images.double(), asked.words, asked.words_mask))
    order = torch.randperm(16)
    torch.testing.assert_close(model.read(image[:, order], asked.words, asked.words_mask)[0], logits)
    real = (torch.arange(20) < 16).expand(6, 20)
    longer = torch.cat([image, torch.full((6, 4, 48), 1e3).double()], 1)
    found, wider = model.read(longer, asked.words, asked.words_mask, real)
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(wider[:, :, :16], weights)
    short = int(asked.words_mask[0].sum())
    alone = model.read(image[:1], asked.words[:1, :short], asked.words_mask[:1, :short])[0]
    torch.testing.assert_close(alone, logits[:1])


def test_score_counts_answers_and_homes():
    asked = scenes.make(9, seed=2)

    class Oracle(scenes.Reader):
        def read(self, image, words, mask, context_mask=None):
            weights = torch.zeros(9, scenes.LENGTH, 16)
            for row, (scene, text) in enumerate(zip(asked.scenes, asked.texts, strict=True)):
                for t, word in enumerate(text.split()):
                    weights[row, t, next((p for p, *names in scene.objects if word in names), 0)] = 1
            answers = asked.answers.clone()
            answers[0] = (answers[0] + 1) % len(scenes.ANSWERS)
            return torch.nn.functional.one_hot(answers, len(scenes.ANSWERS)).float(), weights

    found = scenes.score(Oracle(), asked)
    by_word = found.pop("home_by_word")
    assert by_word and set(by_word) <= {*scenes.COLOURS, *scenes.SHAPES} and set(by_word.values()) == {1.0}
    assert found == {
        "exact": round(8 / 9, 4),
        "by_kind": {"colour": round(2 / 3, 4), "shape": 1.0, "both": 1.0},
        "home": 1.0,
    }


# --- results


def test_run_writes_keeps_and_drops(tmp_path, capsys):
    small = Settings(steps=2, batch_size=8, d_model=4)
    runs = {"short": small, SHOWN_RUN: replace(small, steps=3)}
    options = {"reader_steps": 2, "scenes_data": FEW, **SMALL}
    result = run(tmp_path, seeds=(0, 1), runs=runs, **options)
    written = json.loads((tmp_path / "cross_attention.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert list(written["runs"]) == [f"{name}/{seed}" for name in (*runs, "reader") for seed in (0, 1)]
    one = written["runs"]["short/1"]
    assert {"exact", "by_length", "crossing", "crossing_first_layer", "parameters", "date", "environment"} <= one.keys()
    assert one["settings"] == vars(small) and len(one["data"]["sha256"]) == 64
    assert {"exact", "by_kind", "home", "parameters"} <= written["runs"]["reader/1"].keys()
    shown = json.loads((tmp_path / "cross_attention_alignments.json").read_text())
    assert shown["seed"] == 0 and len(shown["alignments"]) == len(first.SHOWN)
    model, provenance = scenes.load_reader(tmp_path / "cross_attention_reader.safetensors")
    assert provenance["seed"] == 0 and not model.training

    capsys.readouterr()
    assert run(tmp_path, seeds=(0, 1), runs=runs, **options) == written
    assert capsys.readouterr().out.count("kept") == 6
    assert list(run(tmp_path, seeds=(0,), runs={"short": small}, **options)["runs"]) == ["short/0", "reader/0"]


def test_committed_results_are_those_of_the_experiment():
    committed, shown = lab.load_result("cross_attention"), lab.load_result("cross_attention_alignments")
    assert committed["runs"].keys() == {f"{name}/{seed}" for name in (*RUNS, "reader") for seed in (0, 1, 2)}
    data, images = first.load_pairs("de").provenance(), None
    for key, record in committed["runs"].items():
        if record["model"] == "reader":
            images = images or record["data"]
            assert record["data"] == images and record["exact"] > 0.9, key
        else:
            assert record["settings"] == vars(RUNS[record["model"]]) and record["data"] == data, key
    assert shown["settings"] == vars(RUNS[SHOWN_RUN]) and shown["model"] == SHOWN_RUN
    assert [example["number"] for example in shown["alignments"]] == list(first.SHOWN)


def test_the_committed_reader_answers_new_questions():
    model, provenance = scenes.load_reader()
    assert provenance["model"] == "reader" and provenance["seed"] == 0
    found = scenes.score(model, scenes.make(60, seed=11))
    assert found["exact"] > 0.9 and found["home"] > 0.9
