"""`python -m tests.fuzz --inputs 10000 --seed 0`: changed inputs of each kind, and a table.

A failure is printed with what replays it alone: `--kind KIND --only NUMBER --seed SEED`.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from random import Random

# What is read here is odd on purpose.
warnings.simplefilter("ignore")


def main() -> None:
    """Run the inputs that were asked for and print the table."""
    from .kinds import all_kinds
    from .run import Outcome, Result, run

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="one kind alone; repeatable")
    parser.add_argument("--only", type=int, help="the number of one input, to replay it")
    parser.add_argument("--out", type=Path, help="where the table goes as JSON")
    parser.add_argument("--verbose", action="store_true", help="print what was said of each")
    asked = parser.parse_args()
    kinds = [kind for kind in all_kinds() if not asked.kind or kind.name in asked.kind]
    each = -(-asked.inputs // len(kinds))
    table: dict[str, dict[str, float | int | str]] = {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="tuner-fuzz-") as made:
        for place, kind in enumerate(kinds):
            folder = Path(made) / str(place)
            folder.mkdir()
            kind.make(folder)
            whole = run(kind.valid(folder))
            if whole.outcome is not Outcome.ACCEPTED and "exit code" not in whole.said:
                print(f"{kind.name}: the valid input is not accepted: {whole.said}")
            kind.restore(folder)
            numbers = range(each) if asked.only is None else [asked.only]
            counts: Counter[Outcome] = Counter()
            slowest = Result(Outcome.ACCEPTED, 0.0)
            for number in numbers:
                draw = Random(f"{asked.seed} {kind.name} {number}")
                how, read = kind.changed(folder, draw)
                try:
                    result = run(read)
                finally:
                    kind.restore(folder)
                counts[result.outcome] += 1
                slowest = max(slowest, result, key=lambda one: one.cpu_s)
                if result.outcome.is_failure or asked.verbose or asked.only is not None:
                    print(f"\n{kind.name}, --only {number}, {result.outcome}: {how[:500]}")
                    print(f"    {result.said[:3000]}", flush=True)
            bad = {one: counts[one] for one in Outcome if one.is_failure}
            failed += sum(bad.values())
            table[kind.name] = {
                "inputs": sum(counts.values()),
                "accepted": counts[Outcome.ACCEPTED],
                "refused in words": counts[Outcome.REFUSED],
                "tracebacks": bad[Outcome.TRACEBACK],
                "hangs": bad[Outcome.HANG],
                "echoed or secret": bad[Outcome.ECHO] + bad[Outcome.SECRET],
                "slowest, CPU s": round(slowest.cpu_s, 2),
            }
            print(f"{kind.name}: {table[kind.name]}", file=sys.stderr, flush=True)
    columns = list(next(iter(table.values())))
    sums: dict[str, float | int | str] = {
        column: sum(int(row[column]) for row in table.values()) for column in columns[:-1]
    }
    sums[columns[-1]] = max(float(row[columns[-1]]) for row in table.values())
    print(f"\n| kind | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, row in {**table, "all": sums}.items():
        print(f"| {name} | {' | '.join(str(row[column]) for column in columns)} |")
    if asked.out is not None:
        content = {"inputs": asked.inputs, "seed": asked.seed, "kinds": table, "all": sums}
        asked.out.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
