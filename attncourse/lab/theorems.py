"""The map of attention: its mechanisms, and the theorems between them, each computed by both of its sides.

`python -m attncourse.lab.theorems` writes `data/map.json`; `check("gqa-every-head")` tries one theorem.
"""

import argparse
import difflib
import inspect
import math
import platform
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch

from attncourse.lab.proofs import alignment, caches, dot_product, execution, fewer_scores, linear, shared_heads
from attncourse.lab.proofs.common import LEAST, TOLERANCE, Limit, Theorem
from attncourse.lab.records import bound, write_json

PATH = Path(__file__).parent.parent / "data" / "map.json"


@dataclass(frozen=True)
class Node:
    """A mechanism on the map. chapter and module: where the course has it.

    date: the month of its source's first version, or of earlier code, as the timeline has it.
    """

    id: str
    family: str
    date: str
    chapter: str
    module: str
    source: str
    short: str
    title: str


# id | family | date | chapter | module | source | short | title
TABLE = """
additive | alignment | 2014-09 | 01_bahdanau | bahdanau | bahdanau2014 | additive | Additive attention
hard | alignment | 2015-02 | 02_luong | luong | xu2015 | hard | Hard attention
luong | alignment | 2015-08 | 02_luong | luong | luong2015 | Luong | Luong's global attention
local | alignment | 2015-08 | 02_luong | luong | luong2015 | local | Luong's local attention
self_attention | dot product | 2017-06 | 03_self_attention | self_attention | vaswani2017 | self | Self-attention
cross_attention | dot product | 2017-06 | 04_cross_attention | cross_attention | vaswani2017 | cross | Cross-attention
causal | dot product | 2017-06 | 05_causal | causal | vaswani2017 | causal | Causal self-attention
multi_head | dot product | 2017-06 | 06_multi_head | multi_head | vaswani2017 | MHA | Multi-head attention
rope | dot product | 2021-04 | 07_positions | positions | su2021 | RoPE | Rotary positions
alibi | dot product | 2021-08 | 07_positions | positions | press2021 | ALiBi | ALiBi
sparse | fewer scores | 2019-04 | 09_sparse | sparse | child2019 | sparse | Sparse attention
sliding_window | fewer scores | 2020-04 | 08_sliding_window | sliding_window | beltagy2020 | window | Sliding window
longformer | fewer scores | 2020-04 | 09_sparse | longformer | beltagy2020 | Longformer | Longformer's attention
bigbird | fewer scores | 2020-07 | 09_sparse | bigbird | zaheer2020 | BigBird | BigBird's attention
linear | linear | 2020-06 | 10_linear | linear | katharopoulos2020 | linear | Linear attention
performer | linear | 2020-09 | 10_linear | performer | choromanski2020 | Performer | Performer
kv_cache | cache | 2017-09 | 11_kv_cache | kv_cache | vaswani2018 | KV cache | Cache of keys and values
mqa | cache | 2019-11 | 12_mqa | mqa | shazeer2019 | MQA | Multi-query attention
gqa | cache | 2023-05 | 13_gqa | gqa | ainslie2023 | GQA | Grouped-query attention
rolling_cache | cache | 2023-10 | 08_sliding_window | kv_cache | jiang2023 | rolling | Rolling cache
quantized_cache | cache | 2024-02 | 11_kv_cache | quantized_cache | liu2024 | quantized | Quantized cache
mla | cache | 2024-05 | 14_mla | mla | deepseek2024 | MLA | Multi-head latent attention
online | execution | 2018-05 | 15_execution | execution | milakov2018 | online | Online softmax
tiled | execution | 2022-05 | 15_execution | execution | dao2022 | tiled | Tiled attention (FlashAttention)
paged | execution | 2023-09 | 15_execution | paged_cache | kwon2023 | paged | Paged cache
"""
NODES = [Node(*(field.strip() for field in row.split("|"))) for row in TABLE.strip().splitlines()]
THEOREMS = [
    found
    for module in (alignment, dot_product, fewer_scores, linear, caches, shared_heads, execution)
    for found in vars(module).values()
    if isinstance(found, Theorem)
]


def described(theorem: Theorem) -> dict:
    """What the map says of a theorem before anything is computed."""
    about = {name: getattr(theorem, name) for name in ("id", "of", "kind", "condition", "statement", "why", "chapter")}
    about["of"] = list(theorem.of)
    about["sizes"] = [
        {name: list(value) if isinstance(value, tuple) else value for name, value in sizes.items()}
        for sizes in theorem.sizes
    ]
    if isinstance(theorem, Limit):
        about |= {"quantity": theorem.quantity, "seeds": theorem.seeds, "slopes": list(theorem.slopes)}
    return about


def measure(theorem: Theorem) -> dict:
    """The record of a theorem in the map. One that does not hold, or raises, is recorded as such.

    differences: the largest of all sizes, by dtype, rounded up to a power of ten. points: a limit's errors; otherwise:
    the difference with the condition broken; both have two digits. None stands for what is no finite number.
    """
    try:
        return record(theorem, theorem.measured())
    except Exception as error:  # a broken mechanism must not stop the others
        about = described(theorem) | {"compared": [], "differences": {}}
        about |= {"points": [], "slope": None} if isinstance(theorem, Limit) else {}
        about["otherwise"] = {"what": theorem.otherwise, "difference": None}
        return about | {"holds": False, "error": f"{type(error).__name__}: {error}"}


def record(theorem: Theorem, found: dict) -> dict:
    """The record of what `measured` has found."""
    about = described(theorem) | {"compared": found["compared"]}
    about["differences"] = {
        str(dtype).removeprefix("torch."): {name: _bound(value, dtype) for name, value in of.items()}
        for dtype, of in found.get("differences", {}).items()
    }
    if "points" in found:
        about["points"] = [{theorem.quantity: p, "error": _two(error)} for p, error in found["points"].items()]
        about["slope"] = _two(found["slope"])
    about["otherwise"] = {"what": theorem.otherwise, "difference": _two(found["otherwise"])}
    return about | {"holds": found["holds"]}


def run(path: Path = PATH) -> dict:
    """Measure all theorems and write the map; returns it."""
    content = {
        "versions": {
            "python": ".".join(platform.python_version_tuple()[:2]),
            "torch": torch.__version__.split("+")[0],
        },
        "date": date.today().isoformat(),
        "tolerances": {str(dtype).removeprefix("torch."): value for dtype, value in TOLERANCE.items()},
        "least_otherwise": LEAST,
        "nodes": [asdict(node) for node in NODES],
        "theorems": [measure(theorem) for theorem in THEOREMS],
    }
    write_json(path, content)
    return content


def check(name: str, **changed: object) -> None:
    """Try one theorem, or see what its outputs make of other sizes: `check("gqa-every-head", G=1)`.

    Raises ValueError for a theorem or a size that is not there.
    """
    known = {theorem.id: theorem for theorem in THEOREMS}
    if name not in known:
        near = [one for one in known if name in one] or difflib.get_close_matches(name, known) or known
        raise ValueError(f"{name!r} is no theorem; there is {', '.join(near)}")
    theorem = known[name]
    is_limit = isinstance(theorem, Limit)
    if changed:
        sizes = inspect.signature(theorem.sides).parameters
        if unknown := [size for size in changed if size not in sizes]:
            raise ValueError(f"{name} has no {' or '.join(unknown)}; it has {', '.join(sizes)}")
        told = "the relative error is" if is_limit else "the sides differ by"
        print(f"{name} with {_listed(changed)}: {told} {theorem.difference(**changed):.2g}")
        return
    measured = measure(theorem)
    print(f"{theorem.condition}: {theorem.statement} {'It holds.' if measured['holds'] else 'IT DOES NOT HOLD.'}")
    print(_numbers(measured))
    print(f"Why: {theorem.why}")
    first = ({theorem.quantity: theorem.points[-1]} if is_limit else {}) | theorem.sizes[0]
    print(f'Change something yourself, as in check("{name}", {_listed(theorem.broken)}).', end=" ")
    print(f"The first sizes: {_listed(first)}")


def _listed(sizes: dict) -> str:
    return ", ".join(f"{size}={value}" for size, value in sizes.items())


def _numbers(found: dict) -> str:
    """What a record says was measured, in one line."""
    if "error" in found:
        return found["error"]
    if "points" in found:
        quantity, first, last = found["quantity"], found["points"][0], found["points"][-1]
        told = f"relative error {first['error']} at {quantity} = {first[quantity]}, {last['error']} at {last[quantity]}"
        told += f", slope {found['slope']}"
    else:
        told = "; ".join(
            f"{dtype}: " + ", ".join(f"{name} differ by less than {value}" for name, value in of.items())
            for dtype, of in found["differences"].items()
        )
    return f"{told}; otherwise ({found['otherwise']['what']}): {found['otherwise']['difference']}"


def _bound(difference: float, dtype: torch.dtype) -> float | None:
    """A power of ten at least 8 times as large, but no more than the tolerance where the difference is within it.

    Tensors are so small that other kernels' rounding may be three times as large.
    """
    if not math.isfinite(difference):
        return None
    found = bound(4 * difference, dtype)
    return min(found, TOLERANCE[dtype]) if difference <= TOLERANCE[dtype] else found


def _two(number: float) -> float | None:
    return float(f"{number:.2g}") if math.isfinite(number) else None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m attncourse.lab.theorems", description=__doc__)
    parser.add_argument("--out", type=Path, default=PATH, help="the file to write")
    torch.set_num_threads(1)
    theorems = run(parser.parse_args(arguments).out)["theorems"]
    for theorem in theorems:
        print(f"{'holds' if theorem['holds'] else 'BROKEN':6} {theorem['id']:26} {_numbers(theorem)}")
    print(f"{sum(theorem['holds'] for theorem in theorems)} of {len(theorems)} theorems hold")


if __name__ == "__main__":
    main()
