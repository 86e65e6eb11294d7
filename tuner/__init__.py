"""Search the hyperparameters of language-model editors under a deviation budget.

The core is here by name and loads when it is first used; it needs no service library. The search
over many trials is in `tuner.search`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.bundle.bundle import Bundle, StoredBundle, make_bundle
    from tuner.bundle.export import export
    from tuner.editing.corpus import load_general_text
    from tuner.editing.delta import Delta, WeightDelta
    from tuner.editing.editor import Auxiliary, Editor, Step
    from tuner.editing.model import LanguageModel, load_model
    from tuner.editing.task import Example, Task, load_task
    from tuner.editors import editor_names, find_editor
    from tuner.errors import TunerError
    from tuner.evaluation.deviation.budget import Budget, Certificate, Deviation, Verdict
    from tuner.protocols.sequential import StreamRecord, run_stream
    from tuner.trial.records import Rule, TrialRecord
    from tuner.trial.run import Bench, TrialResult, run_trial

_HOMES = {
    "tuner.bundle.bundle": ("Bundle", "StoredBundle", "make_bundle"),
    "tuner.editing.corpus": ("load_general_text",),
    "tuner.editing.delta": ("Delta", "WeightDelta"),
    "tuner.editing.editor": ("Auxiliary", "Editor", "Step"),
    "tuner.editing.model": ("LanguageModel", "load_model"),
    "tuner.editing.task": ("Example", "Task", "load_task"),
    "tuner.editors": ("editor_names", "find_editor"),
    "tuner.errors": ("TunerError",),
    "tuner.evaluation.deviation.budget": ("Budget", "Certificate", "Deviation", "Verdict"),
    "tuner.bundle.export": ("export",),
    "tuner.trial.records": ("Rule", "TrialRecord"),
    "tuner.protocols.sequential": ("StreamRecord", "run_stream"),
    "tuner.trial.run": ("Bench", "TrialResult", "run_trial"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Auxiliary",
    "Bench",
    "Budget",
    "Bundle",
    "Certificate",
    "Delta",
    "Deviation",
    "Editor",
    "Example",
    "LanguageModel",
    "Rule",
    "Step",
    "StoredBundle",
    "StreamRecord",
    "Task",
    "TrialRecord",
    "TrialResult",
    "TunerError",
    "Verdict",
    "WeightDelta",
    "editor_names",
    "export",
    "find_editor",
    "load_general_text",
    "load_model",
    "load_task",
    "make_bundle",
    "run_stream",
    "run_trial",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return __all__
