"""Which hyperparameters a study may try: those of one editor, or of several."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, final

from optuna.distributions import CategoricalDistribution
from optuna.trial import BaseTrial
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuner.editing.companions import Companions
from tuner.editing.editor import Editor
from tuner.editing.model import LanguageModel
from tuner.editing.model_names import is_model_name
from tuner.editing.task import Task
from tuner.errors import ConfigError
from tuner.files.yaml_file import parse_yaml
from tuner.search.dimensions import Dimension, Scalar, as_entry, corners, read_dimension, suggest
from tuner.validation import describe_problem

EDITOR = "editor"
"""The name under which the choice among several editors is a hyperparameter."""


@final
class Branch(BaseModel):
    """The space of one editor: what is fixed and what is searched."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str
    editor: type[Editor]
    fixed: dict[str, Any] = Field(default_factory=dict)
    search: dict[str, Dimension] = Field(default_factory=dict)

    def build(self, searched: Mapping[str, Any]) -> Editor:
        """Return the editor with the fixed and these searched hyperparameters.

        Raises:
            ConfigError: the editor does not take this combination of values.
        """
        try:
            return self.editor.model_validate({**self.fixed, **searched})
        except ValidationError as error:
            problems = error.errors(include_url=False)
            reasons = "; ".join(describe_problem(problem) for problem in problems)
            raise ConfigError(f"{self.name}: {reasons}") from None

    def corners(self) -> Iterator[Editor]:
        """Yield editors that hold every end of every range once, as far as they are valid."""
        for _, _, values in corners(self.search):
            with suppress(ConfigError):
                yield self.build(values)


@final
class Space(BaseModel):
    """What a study searches: one editor's hyperparameters, or those of several editors.

    With several, the editor is itself a hyperparameter called `editor`, and each of the others
    carries its editor's name in front (`lora.rank`) and exists only where that editor is chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    branches: tuple[Branch, ...] = Field(min_length=1)

    @property
    def conditional(self) -> bool:
        """Whether which hyperparameters exist depends on the editor."""
        return len(self.branches) > 1

    @property
    def distributions(self) -> dict[str, Dimension]:
        """Every hyperparameter that is searched, of all editors."""
        searched: dict[str, Dimension] = {}
        for branch in self.branches:
            searched |= self._distributions_of(branch)
        return {**self._choice_of_editor, **searched}

    def active(self, parameters: Mapping[str, Any]) -> dict[str, Dimension]:
        """Return the hyperparameters that exist for the editor chosen in `parameters`."""
        branch = self.branch(parameters)
        return {**self._choice_of_editor, **self._distributions_of(branch)}

    def branch(self, parameters: Mapping[str, Any]) -> Branch:
        """Return the editor's space that `parameters` belong to.

        Raises:
            KeyError: the parameters are not from this space.
        """
        if not self.conditional:
            return self.branches[0]
        by_name = {branch.name: branch for branch in self.branches}
        return by_name[parameters[EDITOR]]

    def draw(self, trial: BaseTrial, *, editor: str | None = None) -> dict[str, Any]:
        """Return a value for every hyperparameter that exists, as the trial's sampler proposes.

        Where `editor` is given, that editor is taken and the sampler is not asked for one.
        """
        drawn: dict[str, Any] = {}
        if self.conditional:
            drawn[EDITOR] = editor or trial.suggest_categorical(EDITOR, self._names)
        for name, dimension in self._distributions_of(self.branch(drawn)).items():
            drawn[name] = suggest(trial, name, dimension)
        return drawn

    def build(self, parameters: Mapping[str, Any]) -> Editor:
        """Return the editor with these hyperparameters, named as in `distributions`.

        Raises:
            ConfigError: the editor does not take this combination of values.
        """
        branch = self.branch(parameters)
        return branch.build({name: parameters[self._full(branch, name)] for name in branch.search})

    def check_task(self, task: Task) -> None:
        """Verify that a task has what the editors need wherever in this space they are.

        Raises:
            ConfigError: it has not.
        """
        for branch in self.branches:
            for editor in branch.corners():
                editor.check_task(task)

    def check_model(self, model: LanguageModel, companions: Companions) -> None:
        """Verify that the editors can edit a model wherever in this space they are.

        Raises:
            ConfigError: they cannot.
        """
        for branch in self.branches:
            for editor in branch.corners():
                editor.check_model(model, companions)

    @property
    def definition(self) -> dict[str, Any]:
        """The space as plain JSON values: two equal definitions search the same."""
        return {
            branch.name: {
                "editor": branch.editor.name(),
                "fixed": branch.fixed,
                "search": {key: as_entry(range_) for key, range_ in branch.search.items()},
            }
            for branch in self.branches
        }

    @staticmethod
    def definition_from_before(definition: dict[str, Any]) -> dict[str, Any]:
        """Return a definition as it is written now of one that an earlier version wrote.

        Then YAML's `1e-4` was text, and a range kept its end where its last step is just below.
        """
        return {
            name: {
                **branch,
                "fixed": {key: _as_number(value) for key, value in branch["fixed"].items()},
                "search": {key: _as_written_now(entry) for key, entry in branch["search"].items()},
            }
            if isinstance(branch, dict)
            and isinstance(branch.get("fixed"), dict)
            and isinstance(branch.get("search"), dict)
            else branch
            for name, branch in definition.items()
        }

    @property
    def model_folders(self) -> tuple[str, ...]:
        """The folders of the models that editors read beside the one that they edit."""
        folders: dict[str, None] = {}
        for branch in self.branches:
            for key, field in branch.editor.model_fields.items():
                if not is_model_name(field):
                    continue
                dimension = branch.search.get(key)
                searched: tuple[Scalar, ...] = ()
                if isinstance(dimension, CategoricalDistribution):
                    searched = dimension.choices
                for model in (branch.fixed.get(key), *searched):
                    if isinstance(model, str) and os.path.isabs(model):
                        folders[model] = None
        return tuple(folders)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(branch.name for branch in self.branches)

    @property
    def _choice_of_editor(self) -> dict[str, Dimension]:
        return {EDITOR: CategoricalDistribution(self._names)} if self.conditional else {}

    def _distributions_of(self, branch: Branch) -> dict[str, Dimension]:
        return {self._full(branch, key): range_ for key, range_ in branch.search.items()}

    def _full(self, branch: Branch, name: str) -> str:
        return f"{branch.name}.{name}" if self.conditional else name


def _as_number(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ConfigError):
            read = parse_yaml(value)
            return read if isinstance(read, float) else value
    return value


def _as_written_now(entry: Any) -> Any:
    with suppress(ValidationError):
        return json.loads(json.dumps(as_entry(read_dimension(entry))))
    return entry
