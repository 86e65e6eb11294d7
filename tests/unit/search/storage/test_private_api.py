"""What is used of Optuna beyond its public API: in one place, and as expected."""

import optuna
from optuna.trial import Trial, TrialState, create_trial

from tests.support.clone import ROOT


def test_the_id_of_a_trial_is_asked_for_by_the_ledger_alone() -> None:
    files = {path: path.read_text() for path in (ROOT / "tuner").rglob("*.py")}
    users = {str(path.relative_to(ROOT)) for path, text in files.items() if "_trial_id" in text}
    assert users == {"tuner/search/storage/ledger.py"}


def test_a_trial_that_was_added_as_running_is_written_to_by_its_id() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(create_trial(state=TrialState.RUNNING))
    study.add_trial(create_trial(state=TrialState.RUNNING))
    frozen = study.get_trials(deepcopy=False)[1]
    trial = Trial(study, frozen._trial_id)
    trial.set_user_attr("failure", "none")
    trial.set_constraint("deviation", -1.0)
    study.tell(1, 0.5)
    first, second = study.get_trials()
    assert (first.state, second.state) == (TrialState.RUNNING, TrialState.COMPLETE)
    assert (first.user_attrs, second.user_attrs) == ({}, {"failure": "none"})
    assert second.constraints == {"deviation": -1.0}
