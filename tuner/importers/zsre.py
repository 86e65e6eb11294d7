"""zsRE becomes a task: `zsre_mend_eval.json` and `zsre_mend_train.json` as published."""

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tuner.editing.task import Example, LossKind, SuccessCriterion, Task
from tuner.importers.json_list import read_records
from tuner.importers.selection import FactRecord, FactSelection, as_target, choose, with_subject

_LOC_PREFIX = "nq question: "


class ZsreTarget(StrEnum):
    """Which published answer an edit writes; results of the two cannot be compared."""

    ANSWER = "answer"  # the first true answer: ROME, MEMIT and the fine-tuning papers
    ALT = "alt"  # the made-up alternative: EasyEdit


class _PublishedRow(BaseModel):
    """Fields of the published files that matter here; others are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    subject: str
    src: str
    rephrase: str
    answers: tuple[str, ...]
    loc: str
    loc_ans: str
    alt: str | None = None


def import_zsre(
    path: Path, name: str, selection: FactSelection, target: ZsreTarget = ZsreTarget.ANSWER
) -> Task:
    """Return the task in a published zsRE file.

    The pool of facts holds true answers of other records, whichever answer is edited to.

    Source: Mitchell et al. 2022 (arXiv:2110.11309), the fields of their files; Meng et al. 2022
    (arXiv:2202.05262), how they are edited and judged.

    Raises:
        TaskError: the file cannot be read or a record is malformed; names file and record.
        ConfigError: there are fewer usable records than asked for.
    """
    skipped: Counter[str] = Counter()

    def usable() -> Iterator[FactRecord]:
        for number, record in read_records(path, _PublishedRow):
            reason = _unusable(record, target)
            if reason:
                skipped[reason] += 1
            else:
                # The published code numbers records by their place, from 0.
                yield _fact_record(record, str(number - 1), target)

    chosen = choose(usable(), selection, skipped)
    written = {
        ZsreTarget.ANSWER: "answers[0], the true answer, is to be given",
        ZsreTarget.ALT: "alt is to be given instead of answers[0], the true answer",
    }
    return Task(
        name=name,
        description=f"zsRE, read from {path.name}: {written[target]}. Neighbours are the loc "
        f"questions, prefix and all, with a question mark and their gold answer. "
        f"{chosen.description}",
        loss=LossKind.LIKELIHOOD,
        success=SuccessCriterion.TOKENS,
        source="zsRE, Levy et al. 2017 (arXiv:1706.04115), as selected by Mitchell et al. 2022 "
        "(arXiv:2110.11309), https://rome.baulab.info; loc from Natural Questions.",
        licence="Not stated with the file; Natural Questions is CC BY-SA 3.0.",
        val=chosen.val,
        test=chosen.test,
    )


def _unusable(record: _PublishedRow, target: ZsreTarget) -> str | None:
    subject = record.subject.strip()
    if not subject or record.src.count(subject) != 1:
        return "had no single subject slot"
    answer = record.answers[0].strip() if record.answers else ""
    if not answer:
        return "had no answer"
    if not record.rephrase.strip():
        return "had no paraphrase"
    if not record.loc.startswith(_LOC_PREFIX) or not record.loc_ans.strip():
        return "had no loc question with an answer"
    if target is ZsreTarget.ALT:
        if not (record.alt or "").strip():
            return "had no alt"
        if (record.alt or "").strip() == answer:
            return "left the object as it is"
    return None


def _fact_record(record: _PublishedRow, number: str, target: ZsreTarget) -> FactRecord:
    subject, question = record.subject.strip(), record.src.strip()
    true = as_target(record.answers[0])
    chosen = true if target is ZsreTarget.ANSWER else as_target(record.alt or "")

    def edit(text: str) -> Example:
        prompt = text.strip()
        return Example(
            prompt=prompt,
            target=chosen,
            contrast=None if chosen == true else true,
            subject=with_subject(prompt, subject),
            record=number,
        )

    return FactRecord(
        subject=subject,
        relation=question.replace(subject, "{}"),
        edit=edit(question),
        paraphrases=(edit(record.rephrase),),
        neighbours=(
            Example(
                # The published code leaves the prefix in and adds the question mark.
                prompt=f"{record.loc.strip()}?",
                target=as_target(record.loc_ans),
                record=number,
            ),
        ),
        generations=(),
        fact=Example(prompt=question, target=true, subject=with_subject(question, subject)),
    )
