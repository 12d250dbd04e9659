"""`attncourse kv`: how much memory the caches of published models take."""

import argparse

from attncourse.cli.text import aligned, count, failed

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4}  # of a cached number, scales left out


def add_to(commands: argparse._SubParsersAction) -> None:
    """The parser of `kv`."""
    kv = commands.add_parser(
        "kv",
        help="how much memory a model's cache takes",
        description="Bytes of the cache of keys and values of published models, from their configurations.",
    )
    kv.add_argument("models", nargs="*", metavar="MODEL", help="a name, in upper or lower case; none lists them all")
    kv.add_argument(
        "--tokens",
        type=count,
        default=131072,
        metavar="N",
        help="tokens a sequence, of named models (default: %(default)s)",
    )
    kv.add_argument("--dtype", choices=BITS, default="bf16", help="of a number, without scales (default: %(default)s)")
    kv.add_argument(
        "--batch", type=count, default=1, metavar="N", help="sequences at once, of named models (default: %(default)s)"
    )
    kv.epilog = (
        "Example: attncourse kv DeepSeek-V3 Gemma-3-27b-it --tokens 32768 --dtype fp8. "
        "Exit status: 0 done, 2 wrong usage or an unknown model."
    )
    kv.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """All models, or the caches of those that are named."""
    from attncourse import models

    names, tokens, dtype, batch = options.models, options.tokens, options.dtype, options.batch
    bits = BITS[dtype]
    try:
        records = [models.find_model(name) for name in names or models.load_models()]
    except ValueError as error:
        return failed("kv", f"{error}. `attncourse kv` lists them all.", 2)
    if not names:
        header = ["model", "made by", "layers", "bytes a token", "evidence", "attention"]
        rows = [
            [
                r["name"],
                r["maker"],
                str(r["n_layers"]),
                f"{models.bytes_per_token(r, bits):,}",
                r["evidence"],
                models.kind(r),
            ]
            for r in records
        ]
        print(f"{aligned([header, *rows], (2, 3))}\n\nBytes a token in {dtype}, as long as every window has room.")
        return 0
    rows = []
    for record in records:
        counts = (models.kv_cache_bytes, models.all_global_bytes, models.multi_head_bytes)
        sizes = (f"{batch * count_bytes(record, tokens, bits) / 2**30:,.2f}" for count_bytes in counts)
        token = f"{models.bytes_per_token(record, bits):,}"
        rows.append([record["name"], str(record["n_layers"]), token, *sizes, models.kind(record)])
    header = ["model", "layers", "bytes a token", "cache", "all global", "full MHA", "attention"]
    sequences = "a sequence" if batch == 1 else f"each of {batch:,} sequences"
    print(f"{tokens:,} tokens in {sequences}, {dtype}; caches in GiB\n")
    print(aligned([header, *rows], (1, 2, 3, 4, 5)))
    print("\nAll global: if every layer kept every token. Full MHA: and each head had its own key and value.\n")
    for record in records:
        print(f"{record['name']}: {record['source']} ({record['source_date']}, evidence: {record['evidence']})")
        if tokens > record.get("max_context", tokens):
            print(f"  made for at most {record['max_context']:,} tokens")
        if "note" in record:
            print(f"  {record['note']}")
    return 0
