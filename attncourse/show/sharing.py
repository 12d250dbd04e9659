"""Sharing heads: which query head reads which key-value head, and what that makes of a token's bytes and of a step."""

from collections.abc import Mapping, Sequence
from html import escape

from attncourse.show.html import Output, fragment, prose, require_text, scroll, table, text_table, two_decimals

WIDTH, LEFT, TOP, FALL, BAR = 320, 8, 36, 74, 14  # of the heads' row, left and above it, down to the keys, of a bar


def sharing(
    heads: Sequence[int] = (8, 32, 64, 128),
    *,
    head_dim: int = 128,
    n_layers: int = 32,
    bytes_per_number: int = 2,
    tokens: Sequence[int] = (2048, 8192, 32_768, 131_072),
    start: tuple[int, int, int] = (32, 8, 32_768),
    title: str = "How many key-value heads?",
    caption: str = "A circle is a query head, a square a key-value head; a line joins each query head to the one it "
    "reads. The bar is the cache, beside that of multi-head attention.",
) -> Output:
    """Every number G of key-value heads that H query heads can share: the lines between them, and what they cost.

    heads: the choices of H, each at most 128; for each the slider holds all G that divide it, from H to 1. Query head h
    reads key-value head h // (H/G). The cache: keys and values of n_layers layers, head_dim numbers a head of
    bytes_per_number bytes, for one of the `tokens`. start: H, G and tokens at first. FLOP a byte: 4·S·H·D of one
    step's scores and sums, over the bytes of S keys and values of G heads. Every number is computed here and written
    out (`.data`); the script looks it up, and draws. Without scripts: the start, drawn, and everything as a table.

    Raises ValueError for a start that is none of the choices, and for sizes below 1.
    """
    require_text(title=title, caption=caption)
    heads, tokens = [int(H) for H in heads], [int(S) for S in tokens]
    for name, values in (("heads", heads), ("tokens", tokens)):
        if not values or values != sorted(set(values)) or values[0] < 1:
            raise ValueError(f"{name}={values} must be rising whole numbers from 1 on")
    if heads[-1] > 128:
        raise ValueError(f"heads={heads}, but at most 128 can be drawn")
    if min(head_dim, n_layers, bytes_per_number) < 1:
        raise ValueError(f"head_dim={head_dim}, n_layers={n_layers}, bytes_per_number={bytes_per_number} must be 1 up")
    H, G, S = start
    if H not in heads or S not in tokens or G not in _divisors(H):
        raise ValueError(f"start={start}, but H is one of {heads}, G divides H, and tokens are one of {tokens}")
    records = [
        {"H": H, "steps": [_step(H, G, head_dim, n_layers, bytes_per_number, tokens) for G in _divisors(H)]}
        for H in heads
    ]
    data = {
        "heads": records,
        "tokens": [f"{S:,}" for S in tokens],
        "layers": "1 layer" if n_layers == 1 else f"{n_layers} layers",
        "size": [WIDTH, LEFT, TOP, FALL, BAR],
        "start": [heads.index(H), _divisors(H).index(G), tokens.index(S)],
    }
    lines = describe(data, *data["start"])
    header = ["H, G", "share one", "bytes a token and layer", *(f"{S} tokens" for S in data["tokens"]), "FLOP a byte"]
    rows = [
        [f"{record['H']}, {step['G']}", str(record["H"] // step["G"]), step["bytes"], *step["cache"], step["flop"]]
        for record in records
        for step in record["steps"]
    ]
    said = f"All choices; the cache is that of {data['layers']}"
    items = "".join(f"<p>{escape(line)}</p>" for line in lines)
    body = (
        f'<figure><p class="ac-title">{escape(title)}</p><div class="ac-controls"></div>'
        f"{scroll(_picture(data), title)}"
        f'<div class="ac-live" role="status" aria-live="polite">{items}</div>'
        f"<details><summary>All choices as a table</summary>{table(header, rows, f'{title}: {said}', said)}</details>"
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
    script, styles = "sharing.js", ["scores.css", "sharing.css"]
    html = fragment(body, kind="sharing", piece="sharing", script=script, data=data, styles=styles)
    text = [title, "\n".join(lines), f"{said}\n{text_table(header, rows)}", caption]
    return Output("\n\n".join(text), html, data)


def _divisors(H: int) -> list[int]:
    """All G that divide H, from H down to 1."""
    return [G for G in range(H, 0, -1) if H % G == 0]


def _step(H: int, G: int, D: int, L: int, b: int, tokens: Sequence[int]) -> dict:
    """One choice of G, as plain JSON values: what is said of it, without the context's part."""
    per_token = 2 * G * D * b
    flop, read = 4 * H * D, per_token  # for each cached token
    return {
        "G": G,
        "bytes": f"{per_token:,}",
        "cache": [amount(L * per_token * S) for S in tokens],
        "flop": f"{flop / read:.4g}",
    }


def amount(n_bytes: int) -> str:
    """Bytes in GiB with two decimals, or in MiB below a tenth of a GiB."""
    gib = n_bytes / 2**30
    return f"{two_decimals(gib)} GiB" if gib >= 0.1 else f"{two_decimals(1024 * gib)} MiB"


def describe(data: Mapping, heads: int, step: int, tokens: int) -> list[str]:
    """What the page says of one choice: who reads what, what is stored, and what a step computes with it."""
    record = data["heads"][heads]
    H, chosen = record["H"], record["steps"][step]
    G, n = chosen["G"], H // chosen["G"]
    name = "multi-head" if n == 1 else "multi-query" if G == 1 else "grouped-query"
    if n == 1:
        who = "each query head reads one of its own"
    elif G == 1:
        who = "all query heads read the same one"
    else:
        who = f"query heads 0 to {n - 1} read head 0, {n} to {2 * n - 1} head 1"
        who += ", and so on" if G > 2 else ""
    share = "as much as multi-head attention" if n == 1 else f"1/{n} of multi-head attention's"
    return [
        f"H = {H}, G = {G}, {name}: {who}.",
        f"Cache: {chosen['bytes']} bytes a token and layer. "
        f"{data['layers']}, {data['tokens'][tokens]} tokens: {chosen['cache'][tokens]}, {share}.",
        f"A step of attention: {chosen['flop']} FLOP for each byte of the cache that it reads.",
    ]


def paths(data: Mapping, heads: int, step: int) -> dict[str, str]:
    """What is drawn for one choice: lines from heads to keys, circles, squares, and the bar."""
    width, left, top, fall, bar = data["size"]
    record = data["heads"][heads]
    H, G = record["H"], record["steps"][step]["G"]
    radius, side = min(5, 0.38 * width / H), min(16, 0.8 * width / G)
    found = {"reads": "", "asks": "", "keys": ""}
    for h in range(H):
        x, to = left + width * (h + 0.5) / H, left + width * (h // (H // G) + 0.5) / G
        found["reads"] += f"M{x:.2f} {top + radius:.2f}L{to:.2f} {top + fall - side / 2:.2f}"
        found["asks"] += f"M{x - radius:.2f} {top}a{radius:.2f} {radius:.2f} 0 1 0 {2 * radius:.2f} 0"
        found["asks"] += f"a{radius:.2f} {radius:.2f} 0 1 0 {-2 * radius:.2f} 0z"
    for g in range(G):
        x = left + width * (g + 0.5) / G - side / 2
        found["keys"] += f"M{x:.2f} {top + fall - side / 2:.2f}h{side:.2f}v{side:.2f}h{-side:.2f}z"
    found["room"] = f"M{left} {top + fall + 42}h{width * G / H:.2f}v{bar}H{left}z"
    return found


def _picture(data: Mapping) -> str:
    """Query heads above, key-value heads below them, and under both the cache as a bar."""
    heads, step, _ = data["start"]
    record = data["heads"][heads]
    drawn = "".join(f'<path class="ac-{name}" d="{d}"/>' for name, d in paths(data, heads, step).items())
    base = TOP + FALL + 42
    whole = WIDTH + 2 * LEFT
    alt = "Lines from each query head to the key-value head it reads, and a bar for the cache; both are said below."
    return (
        f'<svg class="ac-sharing-heads" viewBox="0 0 {whole} {base + BAR + 6}" role="img" aria-label="{alt}" '
        f'style="max-width:{1.5 * whole:.0f}px;min-width:{0.8 * whole:.0f}px">'
        f'<path class="ac-lines" d="M{LEFT} {base}h{WIDTH}v{BAR}h-{WIDTH}z"/>{drawn}'
        f'<text x="{LEFT}" y="18">query heads: <tspan class="ac-n-queries">{record["H"]}</tspan></text>'
        f'<text x="{LEFT}" y="{base - 8}">key-value heads: '
        f'<tspan class="ac-n-keys">{record["steps"][step]["G"]}</tspan>. The cache, against multi-head’s:</text></svg>'
    )
