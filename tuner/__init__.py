"""Search the hyperparameters of language-model editors under a deviation budget.

The core is here by name and loads when it is first used; it needs no service library. The search
over many trials is in `tuner.search`.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from tuner.bundle.bundle import Bundle as Bundle
    from tuner.bundle.bundle import StoredBundle as StoredBundle
    from tuner.bundle.bundle import make_bundle as make_bundle
    from tuner.bundle.export import export as export
    from tuner.editing.corpus import load_general_text as load_general_text
    from tuner.editing.delta import Delta as Delta
    from tuner.editing.delta import WeightDelta as WeightDelta
    from tuner.editing.editor import Auxiliary as Auxiliary
    from tuner.editing.editor import Editor as Editor
    from tuner.editing.editor import EpochEdit as EpochEdit
    from tuner.editing.model import LanguageModel as LanguageModel
    from tuner.editing.model import load_model as load_model
    from tuner.editing.task import Example as Example
    from tuner.editing.task import Task as Task
    from tuner.editing.task_folder import load_task as load_task
    from tuner.editors import editor_names as editor_names
    from tuner.editors import find_editor as find_editor
    from tuner.errors import TunerError as TunerError
    from tuner.evaluation.deviation.budget import Budget as Budget
    from tuner.evaluation.deviation.budget import Certificate as Certificate
    from tuner.evaluation.deviation.budget import Deviation as Deviation
    from tuner.evaluation.deviation.budget import Verdict as Verdict
    from tuner.protocols.sequential import SequentialRecord as SequentialRecord
    from tuner.protocols.sequential import run_sequence as run_sequence
    from tuner.trial.evaluator import Evaluator as Evaluator
    from tuner.trial.records import Rule as Rule
    from tuner.trial.records import TrialRecord as TrialRecord
    from tuner.trial.result import TrialResult as TrialResult
    from tuner.trial.run import run_editor as run_editor
    from tuner.trial.run import run_trial as run_trial

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bundle.bundle": ["Bundle", "StoredBundle", "make_bundle"],
        "bundle.export": ["export"],
        "editing.corpus": ["load_general_text"],
        "editing.delta": ["Delta", "WeightDelta"],
        "editing.editor": ["Auxiliary", "Editor", "EpochEdit"],
        "editing.model": ["LanguageModel", "load_model"],
        "editing.task": ["Example", "Task"],
        "editing.task_folder": ["load_task"],
        "editors": ["editor_names", "find_editor"],
        "errors": ["TunerError"],
        "evaluation.deviation.budget": ["Budget", "Certificate", "Deviation", "Verdict"],
        "protocols.sequential": ["SequentialRecord", "run_sequence"],
        "trial.evaluator": ["Evaluator"],
        "trial.records": ["Rule", "TrialRecord"],
        "trial.result": ["TrialResult"],
        "trial.run": ["run_editor", "run_trial"],
    },
)
