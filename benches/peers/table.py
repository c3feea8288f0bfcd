"""Prints the results of a run as two tables: table.py RESULTS_FOLDER"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

# Where our rates stand in `fasa bench ... --format json`: any object that has one key of each. Adjust here.
LENGTH = ("tokens_in_cache", "length", "cached", "tokens", "to", "end")
RATE = ("tokens_per_s", "tokens_per_second", "tok_s", "rate")
METHOD = ("method", "name", "attention")


def objects(value):
    """Every JSON object within a value."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(child)


def pick(row, keys):
    return next((row[key] for key in keys if key in row), None)


def rows(folder):
    """Yields (what, column, length, variant, rate)."""
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            yield row["what"], row["engine"], row["to"], row["variant"], row["tokens_per_s"]
    for what in ("decode", "prefill"):
        path = folder / f"fasa-{what}.json"
        found = json.loads(path.read_text()) if path.exists() and path.stat().st_size else []
        for row in objects(found):
            length, rate, method = pick(row, LENGTH), pick(row, RATE), str(pick(row, METHOD) or "dense")
            if isinstance(length, int) and isinstance(rate, (int, float)):
                column = "fasa dense" if what == "prefill" or method == "dense" else "fasa FASA"
                yield what, column, length, method, rate


def best(samples):
    """The fastest variant by its median, as (rate, variant)."""
    return max((median(rates), variant) for variant, rates in samples.items())


cells = defaultdict(lambda: defaultdict(list))
for what, column, length, variant, rate in rows(Path(sys.argv[1])):
    cells[what, column, length][variant].append(rate)

for what, columns in (
    ("decode", ["llama.cpp", "candle", "fasa dense", "fasa FASA"]),
    ("prefill", ["llama.cpp", "candle", "fasa dense"]),
):
    lengths = sorted({length for w, _, length in cells if w == what})
    print(f"\n{what}, tokens/s\n")
    print(f"| {'tokens in the cache' if what == 'decode' else 'tokens'} | {' | '.join(columns)} |")
    print("|---|" + "---:|" * len(columns))
    begin = 0
    for length in lengths:
        label = f"{length:,}" if what == "decode" else f"{begin:,} to {length:,}"
        rates = []
        for column in columns:
            samples = cells.get((what, column, length))
            # The variant beside the rate: each engine is shown at its fastest.
            rates.append("{:.0f} ({})".format(*best(samples)) if samples else "-")
        print(f"| {label} | {' | '.join(rates)} |")
        begin = length
