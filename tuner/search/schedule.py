"""The study's scheduler at one trial: it notes how each epoch went, and asks whether to go on."""

from typing import final

from tuner.search.config import StudyConfig
from tuner.search.objective import epoch_value
from tuner.search.schedulers import SCHEDULERS, Curve
from tuner.search.storage.folder import StudyFolder
from tuner.trial.records import EpochRecord, Outcome, TrialRecord, TrialState


@final
class TrialSchedule:
    """Asks about one trial, which may take `epochs` epochs at most."""

    def __init__(
        self, config: StudyConfig, folder: StudyFolder, uid: str, number: int, epochs: int
    ) -> None:
        """Make the scheduler.

        Raises:
            ConfigError: there is no such scheduler here.
        """
        self._scheduler = SCHEDULERS.find(config.scheduler)()
        self._config = config
        self._folder = folder
        self._uid = uid
        self._curve = Curve(number=number, values=(), epochs=epochs)

    def prunes(self, epoch: EpochRecord) -> bool:
        """Return whether the trial ends after this epoch, which is noted for the others.

        Raises:
            DiskError: it cannot be noted.
        """
        value = epoch_value(epoch, self._config.rule, self._config.target_epsilon)
        self._curve = self._curve.model_copy(update={"values": (*self._curve.values, value)})
        self._folder.note_curve(self._uid, self._curve)
        others = [
            curve for curve in self._folder.curves(self._uid) if curve.number != self._curve.number
        ]
        return self._scheduler.prunes(self._curve, others)

    def end(self, record: TrialRecord) -> None:
        """Note how the trial ended.

        Raises:
            DiskError: it cannot be noted.
        """
        state = TrialState.PRUNED if record.pruned else TrialState.COMPLETED
        values = tuple(
            epoch_value(epoch, self._config.rule, self._config.target_epsilon)
            for epoch in record.epochs
        )
        if record.outcome is Outcome.FAILED:
            state = TrialState.FAILED
        if values:
            ended = self._curve.model_copy(update={"values": values, "state": state})
            self._folder.note_curve(self._uid, ended)
