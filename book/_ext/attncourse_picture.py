"""The picture that is shown where someone shares a page."""

from pathlib import Path

from matplotlib.patches import Rectangle

from attncourse.lab import load_result

PICTURE = "_static/card.png"  # 1200 × 630 pixels, the size that the sites which show such cards ask for
ALT = "A grid of attention weights: “vier hundert drei und zwanzig” written from “four hundred twenty-three”."
BLUE, DARK, GREY, ORANGE = "#3d63dd", "#131a29", "#545e70", "#d9822b"  # those of the logo and of course.css


def draw(path):
    """The picture of every page: the name, what it is, and an alignment of chapter 01, as the trained model made it."""
    from matplotlib.figure import Figure

    shown = load_result("bahdanau_alignments")["de"]["alignments"]
    example = next(one for one in shown if one["number"] == 423)
    words, written = example["source"], [word.strip("▁") for word in example["target"] if word != "<eos>"]
    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1200), ylim=(630, 0))
    axes.axis("off")
    text = {"family": "DejaVu Sans", "va": "baseline"}
    axes.text(70, 190, "attncourse", size=27, color=BLUE, weight="bold", **text)
    axes.text(70, 285, "Attention,\nrun and checked", size=43, color=DARK, weight="bold", va="top", linespacing=1.15)
    axes.texts[-1].set_y(225)
    about = "From the alignment of 2014\nto the small caches of today:\nread it, run it, write it."
    axes.text(70, 425, about, size=21, color=GREY, va="top", linespacing=1.45, family="DejaVu Sans")
    cell, left, top = 64, 1200 - 70 - 64 * len(words), 200
    for t, row in enumerate(example["weights"][: len(written)]):
        axes.text(left - 14, top + cell * (t + 0.5), written[t], size=15, color=DARK, ha="right", va="center")
        for s, weight in enumerate(row):
            crossed = weight > 0.5 and written[t] in ("drei", "zwanzig")
            box = {"facecolor": ORANGE if crossed else BLUE, "alpha": 0.08 + 0.92 * weight, "linewidth": 0}
            axes.add_patch(Rectangle((left + cell * s + 3, top + cell * t + 3), cell - 6, cell - 6, **box))
    for s, word in enumerate(words):
        where = left + cell * (s + 0.5), top - 12
        axes.text(*where, word, size=15, color=DARK, rotation=45, ha="left", va="bottom", rotation_mode="anchor")
    figure.savefig(path, metadata={"Software": None})


def write(app, exception):
    if not exception and app.builder.format == "html":
        draw(Path(app.outdir, PICTURE))


def setup(app):
    app.connect("build-finished", write)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
