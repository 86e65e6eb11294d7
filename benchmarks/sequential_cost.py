"""What an edit of a sequence costs, by its place: CPU seconds at edit 1, 100 and 400.

    python benchmarks/sequential_cost.py --out benchmarks/results/sequential_cost.json

Facts of counterfact_world, told of other subjects too, so that there are as many edits as asked.
The edits around each place are made one by one and timed, and the median is taken; those between
the places are made in batches of fifty, which leave as much behind as if they had been made one by
one, and are not timed. Nothing is judged: what is judged in a stream after every so many edits is
all of them so far, and grows by its nature. Editors take fewer steps than by default: how a cost
grows does not depend on them, and growth would stand out the more.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

import tuner
from tuner.editing.corpus import load_general_text
from tuner.editing.editor import EditSequence
from tuner.editing.task import Example, ExampleSet, Task
from tuner.files.cache import Cache, cache_folder
from tuner.trial.records import SplitName

_VECTORS = {"target_steps": 2, "prefixes": 1, "clamp": 4.0, "learning_rate": 2.0}
EDITORS = {
    "memit": {**_VECTORS, "covariance_weight": 10.0, "depth": 0.8},
    "look_up": {},
    "rome": _VECTORS,
    "alphaedit": {**_VECTORS, "null_share": 0.9, "regulariser": 0.1, "depth": 0.8},
    "emmet": {**_VECTORS, "depth": 0.8},
    "grace": {"value_steps": 5},
    "wise": {"prefixes": 0, "most_steps": 3, "unrelated": 1, "edits_per_side": 150},
    "lora": {"learning_rate": 3e-3, "epochs": 1, "kl_weight": 0.0},
}
PLACES = (1, 100, 400)
_TIMED = 5
_BATCH = 50


def with_edits(task: Task, count: int) -> Task:
    """Return the task with `count` edits and nothing to judge but their own rows."""
    given = (*task.val.canonical.rows, *task.test.canonical.rows)
    subjects: dict[str, set[str]] = defaultdict(set)
    targets: dict[str, set[str]] = defaultdict(set)
    for row in (*given, *task.val.facts, *task.test.facts):
        if row.subject and row.subject in row.prompt:
            frame = row.prompt.replace(row.subject, "{}", 1)
            subjects[frame].add(row.subject)
            targets[frame].add(row.target)
    rows = {row.prompt: row for row in given}
    everyone = set().union(*subjects.values())
    # First the subjects of a relation itself, then those of the others.
    for names_of in (lambda frame: subjects[frame], lambda frame: everyone):
        for frame, said in sorted(targets.items()):
            choices = sorted(said | {" gold"})
            for place, name in enumerate(sorted(names_of(frame))):
                prompt = frame.replace("{}", name)
                target, contrast = (choices[(place + step) % len(choices)] for step in (0, 1))
                row = Example(prompt=prompt, target=target, contrast=contrast, subject=name)
                rows.setdefault(prompt, row)
    if len(rows) < count:
        raise SystemExit(f"There are {len(rows)} edits, fewer than {count}.")
    edits = tuple(rows.values())[:count]
    canonical = ExampleSet(loss=task.loss, rows=edits)
    few = ExampleSet(loss=task.loss, rows=edits[:1])
    val = task.val.model_copy(
        update={"canonical": canonical, "ood": few, "neighbours": (), "generations": ()}
    )
    return task.model_copy(update={"val": val})


def measured(
    evaluator: tuner.Evaluator, name: str, settings: dict, rows: ExampleSet, cache: Cache
) -> dict:
    """Return the CPU seconds of the edits around each place."""
    editor = tuner.find_editor(name).model_validate(settings)

    def begun() -> EditSequence:
        aux = replace(evaluator.auxiliary_for(SplitName.VAL), cache=cache)
        return EditSequence(editor, evaluator.model, aux)

    def make(sequence: EditSequence, start: int, stop: int) -> float:
        began = time.process_time()
        batch = rows.model_copy(update={"rows": rows.rows[start:stop]})
        sequence.make(batch, seed=start)
        return time.process_time() - began

    make(begun(), 0, 1)  # fills the caches
    # Other rows than the first, whose target vectors the cache holds by now.
    found = {1: statistics.median(make(begun(), row, row + 1) for row in range(1, 1 + _TIMED))}
    sequence, made = begun(), 0
    for place in PLACES[1:]:
        while made < place - 1:
            stop = min(made + _BATCH, place - 1)
            make(sequence, made, stop)
            made = stop
        seconds = [make(sequence, number, number + 1) for number in range(made, made + _TIMED)]
        made += _TIMED
        found[place] = statistics.median(seconds)
    return {
        "cpu_seconds_at_edit": found,
        "ratio_to_the_first": {place: cost / found[1] for place, cost in found.items()},
        "ratio_400_to_100": found[400] / found[100],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--editor", action="append", choices=sorted(EDITORS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sequential_cost.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = tuner.load_model("builtin:neox")
    task = with_edits(tuner.load_task("counterfact_world"), max(PLACES) + 2 * _TIMED)
    evaluator = tuner.Evaluator(
        model, task, tuner.Budget(), load_general_text(None, model), cache=Cache(cache_folder())
    )
    rows = evaluator.split(SplitName.VAL).canonical
    found = json.loads(args.out.read_text())["editors"] if args.out.is_file() else {}
    for name in args.editor or EDITORS:
        # With a cache of its own none finds what another editor, or another run, left for it.
        with tempfile.TemporaryDirectory() as folder:
            found[name] = measured(evaluator, name, EDITORS[name], rows, Cache(Path(folder)))
        print(name, json.dumps(found[name]), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"settings": EDITORS, "editors": found}
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
