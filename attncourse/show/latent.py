"""Latent attention beside its relatives: what a token takes in the cache, and what a decoding step does with it."""

from collections.abc import Mapping
from html import escape
from math import floor

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table

SLIDERS = {  # letter -> what it says, and the sizes to choose from
    "H": ("Heads H", (8, 16, 32, 64, 128)),
    "C": ("Latent C", (64, 128, 256, 512, 1024)),
    "R": ("Rotated key R", (16, 32, 64, 128)),
    "N": ("Other key N", (32, 64, 128, 192, 256)),
    "V": ("Value V", (32, 64, 128, 192, 256)),
}
G, LEFT, WIDTH = 8, 6, 288  # key-value heads of GQA; where rectangles begin, and how wide 1,152 numbers are
HEADER = ("mechanism", "numbers a token", "bytes", "FLOP a token", "FLOP a byte")


def latent(
    start: Mapping[str, int] | None = None,
    *,
    title: str = "One latent for all heads",
    caption: str = "What one layer caches of a token, drawn to scale: a row for each key-value head.",
) -> Output:
    """Five sizes of latent attention to move, and what follows from them, beside MHA, GQA and MQA.

    start: the sizes H, C, R, N, V, each one of `SLIDERS`; default DeepSeek-V3's. The others have H query heads of V
    numbers, GQA 8 key-value heads. Bytes: 2 a number. FLOP: of scores and sums over one cached token in one decoding
    step, a multiply-add is two; naive also expands the token's keys and values. FLOP a byte: of the cache, read once.
    Without scripts: the start, drawn and as a table. Raises ValueError for sizes that cannot be chosen.
    """
    require_text(title=title, caption=caption)
    start = {"H": 128, "C": 512, "R": 64, "N": 128, "V": 128} if start is None else dict(start)
    if start.keys() != SLIDERS.keys() or any(start[letter] not in SLIDERS[letter][1] for letter in SLIDERS):
        choices = ", ".join(f"{letter} {'/'.join(map(str, sizes))}" for letter, (_, sizes) in SLIDERS.items())
        raise ValueError(f"start={start}, but there must be a size for each letter: {choices}")
    sliders = [[letter, label, list(sizes)] for letter, (label, sizes) in SLIDERS.items()]
    data = {"sliders": sliders, "start": start, "G": G, "left": LEFT, "scale": WIDTH / 1152}
    status = describe(**start)
    rows = [[name, *cells] for name, cells in lines(**start).items()]
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{scroll(_picture(start), title)}"
        f'<p class="ac-live" role="status" aria-live="polite">{escape(status)}</p>'
        f"{table(HEADER, rows, f'{title}: numbers')}<figcaption>{prose(caption)}</figcaption></figure>"
    )
    styles = ["scores.css", "latent.css"]
    html = fragment(body, kind="latent", piece="latent", script="latent.js", data=data, styles=styles)
    return Output("\n\n".join([title, status, text_table(HEADER, rows), caption]), html, data)


def costs(H: int, C: int, R: int, N: int, V: int) -> dict[str, tuple[int, int]]:
    """Of one layer and one cached token: numbers stored, and FLOP in a decoding step, by mechanism."""
    return {
        "MHA": (2 * H * V, 4 * H * V),
        f"GQA, {G} heads": (2 * G * V, 4 * H * V),
        "MQA": (2 * V, 4 * H * V),
        "MLA, naive": (C + R, 2 * H * (C * (N + V) + N + R + V)),
        "MLA, absorbed": (C + R, 2 * H * (2 * C + R)),
    }


def absorbs_up_to(C: int, N: int, V: int) -> int | None:
    """The most queries at a time for which absorbing takes fewer multiply-adds than expanding; None: always."""
    more = 2 * C - N - V  # what a score and its share of a sum cost more on latents
    return -(-C * (N + V) // more) - 1 if more > 0 else None


def lines(H: int, C: int, R: int, N: int, V: int) -> dict[str, list[str]]:
    """The table's cells, by mechanism."""
    return {
        name: [f"{numbers:,}", f"{2 * numbers:,}", f"{flop:,}", _tenths(flop / (2 * numbers))]
        for name, (numbers, flop) in costs(H, C, R, N, V).items()
    }


def describe(H: int, C: int, R: int, N: int, V: int) -> str:
    """What the page says of these sizes."""
    found = costs(H, C, R, N, V)
    naive, absorbed = found["MLA, naive"][1], found["MLA, absorbed"][1]
    most = absorbs_up_to(C, N, V)
    until = "for any number of queries at a time" if most is None else f"up to {most:,} queries at a time"
    return (
        f"A token takes {C + R:,} numbers: MHA has {_tenths(2 * H * V / (C + R))} times as many; "
        f"key-value heads to match: {_tenths((C + R) / (2 * V))}. Naive, a step takes {_tenths(naive / absorbed)} "
        f"times the FLOP of absorbed. Absorbing is cheaper {until}."
    )


def rectangles(H: int, C: int, R: int, N: int, V: int) -> dict[str, tuple[float, float]]:
    """Width and height of what is drawn, by class; the rotated key's stands behind the latent's."""
    scale = WIDTH / 1152
    both = 2 * V * scale
    return {"mha": (both, H), "gqa": (both, G), "mqa": (both, 1), "vector": (C * scale, 1), "rope": (R * scale, 1)}


def _tenths(x: float) -> str:
    """One decimal, ties upwards: the same digits as in the script."""
    return f"{floor(10 * x + 0.5) / 10:,.1f}"


def _picture(start: Mapping[str, int]) -> str:
    drawn = rectangles(**start)
    tops = {"mha": 20, "gqa": 170, "mqa": 200, "vector": 224, "rope": 224}
    names = {"mha": "MHA", "gqa": f"GQA, {G} key-value heads", "mqa": "MQA", "vector": "MLA: latent, then rotated key"}
    parts = [f'<text x="{LEFT}" y="{tops[name] - 5}">{label}</text>' for name, label in names.items()]
    for name, (width, height) in drawn.items():
        x = LEFT + (drawn["vector"][0] if name == "rope" else 0)
        place = f'x="{x:g}" y="{tops[name]}" width="{width:g}" height="{height}"'
        parts.append(f'<rect class="ac-{name}" {place}/>')
    whole = LEFT + WIDTH + 6
    alt = "Four rectangles: what a token takes in MHA, GQA, MQA and MLA. Their sizes stand in the table."
    return (
        f'<svg class="ac-cached" viewBox="0 0 {whole} 232" role="img" aria-label="{alt}" '
        f'style="max-width:{1.6 * whole:.0f}px;min-width:{0.9 * whole:.0f}px">{"".join(parts)}</svg>'
    )
