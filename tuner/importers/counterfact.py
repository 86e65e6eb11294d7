"""CounterFact becomes a task: `counterfact.json` and `multi_counterfact.json` as published."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.task import Example, GenerationPrompt, LossKind, Split, SuccessCriterion, Task
from tuner.importers.json_list import read_records
from tuner.importers.selection import (
    FactRecord,
    FactSelection,
    as_target,
    choose,
    with_subject,
)


class _Published(BaseModel):
    """Fields of the published files that matter here; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Object(_Published):
    text: str = Field(alias="str")
    id: str | None = None


class _Rewrite(_Published):
    prompt: str
    subject: str
    relation_id: str
    target_new: _Object
    target_true: _Object


class _PublishedRow(_Published):
    case_id: int
    requested_rewrite: _Rewrite
    paraphrase_prompts: tuple[str, ...]
    neighborhood_prompts: tuple[str, ...]
    generation_prompts: tuple[str, ...] = ()


class _Sample(_Published):
    text: str


class _Snippets(_Published):
    """Texts about subjects that have an object: one record of `attribute_snippets.json`."""

    relation_id: str
    target_id: str
    samples: tuple[_Sample, ...]


def import_counterfact(
    path: Path, name: str, selection: FactSelection, snippets: Path | None = None
) -> Task:
    """Return the task in a published CounterFact file.

    `snippets`, the published `attribute_snippets.json`, gives each record the texts that its
    generations are compared with; a record's first generation prompt carries them.

    Source: Meng et al. 2022 (arXiv:2202.05262), §3.3 and the fields of their files.

    Raises:
        TaskError: a file cannot be read or a record is malformed; names file and record.
        ConfigError: there are fewer usable records than asked for.
    """
    skipped: Counter[str] = Counter()
    about: dict[str, tuple[str, str]] = {}

    def usable() -> Iterator[FactRecord]:
        for _, record in read_records(path, _PublishedRow):
            reason = _unusable(record)
            if str(record.case_id) in about:
                reason = "repeated a case_id"
            if reason:
                skipped[reason] += 1
                continue
            rewrite = record.requested_rewrite
            about[str(record.case_id)] = (rewrite.relation_id, rewrite.target_new.id or "")
            yield _fact_record(record)

    chosen = choose(usable(), selection, skipped)
    task = Task(
        name=name,
        description=f"CounterFact, read from {path.name}: target_new is to replace target_true. "
        f"{chosen.description}",
        loss=LossKind.LIKELIHOOD,
        success=SuccessCriterion.LIKELIER,
        source="CounterFact, Meng et al. 2022 (arXiv:2202.05262), https://rome.baulab.info.",
        licence="MIT, as that of the repository kmeng01/rome, which publishes it.",
        val=chosen.val,
        test=chosen.test,
    )
    return task if snippets is None else _with_references(task, snippets, about)


def _unusable(record: _PublishedRow) -> str | None:
    rewrite = record.requested_rewrite
    if rewrite.prompt.count("{}") != 1:
        return "had no single subject slot"
    if not rewrite.subject.strip():
        return "had no subject"
    if not rewrite.target_new.text.strip() or not rewrite.target_true.text.strip():
        return "had an empty object"
    if rewrite.target_new.text.strip() == rewrite.target_true.text.strip():
        return "left the object as it is"
    if rewrite.subject.strip() in rewrite.prompt:
        return "named the subject twice"
    return None if record.paraphrase_prompts else "had no paraphrase"


def _fact_record(record: _PublishedRow) -> FactRecord:
    rewrite = record.requested_rewrite
    subject = rewrite.subject.strip()
    new, true = as_target(rewrite.target_new.text), as_target(rewrite.target_true.text)
    number = str(record.case_id)
    prompt = rewrite.prompt.replace("{}", subject).strip()

    def edit(text: str) -> Example:
        prompt = text.strip()
        return Example(
            prompt=prompt,
            target=new,
            contrast=true,
            subject=with_subject(prompt, subject),
            record=number,
        )

    return FactRecord(
        subject=subject,
        relation=rewrite.relation_id,
        edit=edit(prompt),
        paraphrases=tuple(edit(text) for text in record.paraphrase_prompts),
        neighbours=tuple(
            Example(prompt=text.strip(), target=true, contrast=new, record=number)
            for text in record.neighborhood_prompts
        ),
        generations=tuple(
            GenerationPrompt(prompt=text.strip(), record=number)
            for text in record.generation_prompts
        ),
        fact=Example(prompt=prompt, target=true, subject=with_subject(prompt, subject)),
    )


def _with_references(task: Task, path: Path, about: Mapping[str, tuple[str, str]]) -> Task:
    """Return the task with the texts about each new object at its first generation prompt."""
    prompts = (*task.val.generations, *task.test.generations)
    wanted = {about[row.record] for row in prompts}
    texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for _, snippets in read_records(path, _Snippets):
        key = (snippets.relation_id, snippets.target_id)
        if key in wanted:
            texts[key] += [sample.text for sample in snippets.samples if sample.text]

    def split(half: Split) -> Split:
        rows: dict[str, list[GenerationPrompt]] = {}
        for row in half.generations:
            references = () if row.record in rows else tuple(texts[about[row.record]])
            changed = row.model_copy(update={"references": references})
            rows.setdefault(row.record, []).append(changed)
        return half.model_copy(
            update={"generations": tuple(row for r in rows.values() for row in r)}
        )

    return task.model_copy(update={"val": split(task.val), "test": split(task.test)})
