"""A study: search on validation, confirm on fresh text, retrain on test, say what holds."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final
from uuid import uuid4

from tuner.editing.corpus import TextPart, load_general_text
from tuner.editing.model import load_model
from tuner.editing.task import Task
from tuner.editing.task_folder import load_task
from tuner.evaluation.constraints import check_measured
from tuner.search.config import StudyConfig, check_unchanged
from tuner.search.observers import ObserverMaker
from tuner.search.progress import Progress
from tuner.search.ray.worker import (
    EvaluatorMaker,
    make_evaluator,
)
from tuner.search.result import SPELLING, TASK_CONSTRAINTS, StudyResult
from tuner.search.space import Space
from tuner.search.space_file import load_space
from tuner.search.storage.folder import StudyFolder
from tuner.search.storage.ledger import Ledger
from tuner.search.study_run import ProgressListener, StudyRun

STUDIES = Path("tuner-studies")
"""Where studies lie unless told otherwise."""


@final
class Study:
    """One search. Running it again continues it where it was, also after a kill."""

    def __init__(
        self,
        config: StudyConfig,
        *,
        folder: Path = STUDIES,
        observers: Sequence[ObserverMaker] = (),
        make_evaluator: EvaluatorMaker = make_evaluator,
    ) -> None:
        """Take the study that `config` describes, kept in a folder of its name in `folder`.

        `make_evaluator` makes what the trials run on; workers call it, so it must be importable.

        Raises:
            ConfigError: the space is not valid, or there is no such task.
        """
        self.config = config
        self.space: Space = load_space(config.space)
        self.task: Task = load_task(config.task, config.edits)
        self.space.check_task(self.task)
        check_measured((*self.task.constraints, *config.constraints, *config.metrics), self.task)
        self.folder = StudyFolder(folder / config.name)
        self.observers = tuple(observers)
        self.make_evaluator = make_evaluator

    def run(self, on_progress: ProgressListener | None = None) -> StudyResult:
        """Search, confirm and retrain, or whatever of it is still to do; return what came out.

        Ctrl-C stops at once and loses no finished trial.

        Raises:
            ConfigError: another process runs this study, or it was begun with other settings.
            ClusterError: the workers cannot run, or Ray or the ledger cannot be reached.
            StudyFailed: every trial failed.
            KeyboardInterrupt: the user stopped the study; the message says how to continue.
        """
        started = time.monotonic()
        config = self.config
        with Ledger.drive(
            self.folder, config.name, config.storage, config.ledger_patience_s
        ) as ledger:
            self._agree(ledger)
            run = StudyRun(
                self.config,
                self.space,
                self.task,
                self.folder,
                ledger,
                observers=self.observers,
                make_evaluator=self.make_evaluator,
                on_progress=on_progress or _ignore,
                started=started,
            )
            try:
                with run:
                    return run.result()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"Stopped. All finished trials are kept in {self.folder.root}; "
                    "the same study, started again, continues there."
                ) from None

    def _agree(self, ledger: Ledger) -> None:
        """Write down what is asked, or make sure that it is what was asked before."""
        now = {
            **self.config.identity,
            "space definition": json.loads(json.dumps(self.space.definition)),
            "task content": self.task.hash,
        }
        if self.task.constraints:
            now[TASK_CONSTRAINTS] = [
                limit.model_dump(mode="json") for limit in self.task.constraints
            ]
        before = ledger.definition
        if before:
            uid = before.pop("uid")
            before.pop("trials", None)
            if isinstance(began_with := before.get("space definition"), dict):
                before["space definition"] = Space.definition_from_before(began_with)
            before.pop(SPELLING, None)
            # A study whose workers never saw a base model, for a wrong name say, has not begun.
            begun = self.folder.base_fingerprint() is not None
            if begun or before.get("space definition") != now["space definition"]:
                check_unchanged(self._same_places(before, now), now, self.config.name)
        else:
            # A repaired ledger may have lost what was asked; its trials know whose they are.
            left = self.folder.left_trials().values() if ledger.history() else ()
            uid = next((file.uid for file in left), uuid4().hex)
        asked = {**now, "uid": uid, "trials": self.config.trials}
        if self.config.spelling:
            asked[SPELLING] = self.config.spelling
        if ledger.definition != asked:
            ledger.set_definition(asked)

    def _same_places(self, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        """Return what was asked before, with our paths where those of then have the same content.

        Raises:
            ConfigError: the model or the text is elsewhere than then, and another one.
        """
        moved = [key for key in ("model", "general") if not _same_place(before.get(key), now[key])]
        same = {"model", "general"}.difference(moved)
        for key, content in (("task", "task content"), ("space", "space definition")):
            if before.get(content) == now[content]:
                same.add(key)
        if any(_is_path(asked.get(key)) for key in moved for asked in (before, now)):
            config = self.config
            model = load_model(
                config.model, revision=config.revision, dtype=config.dtype, device="cpu"
            )
            text = load_general_text(
                config.general,
                model,
                block_length=config.block_length,
                tokens=config.general_tokens,
            ).corpus(TextPart.SEARCH)
            self.folder.claim_base(model.fingerprint, text.hash)
            same.update(moved)
        return {key: now[key] if key in same else value for key, value in before.items()}


def _is_path(name: object) -> bool:
    return isinstance(name, str) and os.path.isabs(name)


def _same_place(before: object, now: object) -> bool:
    """Return whether two names are one, or lead to one file or folder."""
    if before == now:
        return True
    if not isinstance(before, str) or not isinstance(now, str):
        return False
    return _is_path(now) and os.path.realpath(before) == os.path.realpath(now)


def _ignore(progress: Progress) -> None:
    """Take no notice of the progress."""
