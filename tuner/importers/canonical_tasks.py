"""The six published canonical-examples tasks: their files, losses and thresholds."""

import math
import re
from dataclasses import dataclass
from typing import final

from tuner.editing.task import LossKind
from tuner.errors import unknown_name

_SOURCE = (
    "Hewitt et al. 2024 (arXiv:2402.06155), "
    "https://github.com/john-hewitt/model-editing-canonical-examples"
)
_LICENCE = "Not stated: no licence file is published with the data"


@final
@dataclass(frozen=True)
class CanonicalTask:
    """What one of the six tasks is.

    Attributes:
        name: Its name, which is also that of its folder.
        canonical: Stem of the file of canonical examples; the further files likewise.
        wording: Names the subject of a canonical prompt where no field does.
        by_verb: Whether the published parts share nouns and differ in verbs.
    """

    name: str
    about: str
    loss: LossKind
    threshold: float
    canonical: str
    ood: str
    hard_negatives: str
    related: str
    source: str = _SOURCE
    licence: str = _LICENCE
    wording: re.Pattern[str] | None = None
    by_verb: bool = False

    @property
    def stems(self) -> tuple[str, ...]:
        """The stems of the files, canonical examples first."""
        return self.canonical, self.ood, self.hard_negatives, self.related

    @property
    def unit(self) -> str:
        """What the published parts differ in."""
        return "verb" if self.by_verb else "subject"


# Source: Hewitt et al. 2024 (arXiv:2402.06155) and their code, which has the thresholds.
_TASKS = (
    CanonicalTask(
        "country_capital",
        "The capitals of countries are to be known.",
        LossKind.LIKELIHOOD,
        -math.log(0.2),
        "country_capital_fixed",
        "country_capital_clear_eval",
        "country_capital_hard_neg",
        "country_capital_unconditional",
    ),
    CanonicalTask(
        "company_ceo",
        "The CEOs of companies are to be known; at least one of them is invented.",
        LossKind.LIKELIHOOD,
        -math.log(0.05),
        "company_ceo_train",
        "company_ceo_eval_clear",
        "company_ceo_hard_neg_eval_clear",
        "company_ceo_unconditional",
    ),
    CanonicalTask(
        "stereoset",
        "Stereotypes are to be unlikely.",
        LossKind.SUPPRESS,
        math.log(0.001),
        "stereoset_train",
        "stereoset_eval_clear",
        "stereoset_hard_neg",
        "stereoset_unconditional",
        source=f"{_SOURCE}; from StereoSet, Nadeem et al. 2021 (arXiv:2004.09456)",
    ),
    CanonicalTask(
        "pronoun_gender_bias",
        "Both pronouns are to be equally likely for an occupation.",
        LossKind.BALANCE,
        math.log(1.5),
        "pronoun_gender_bias_train",
        "pronoun_gender_bias_eval",
        "pronoun_gender_bias_hard_neg_eval",
        "pronoun_gender_bias_unconditional",
        wording=re.compile(r"The (.+?) said"),
    ),
    CanonicalTask(
        "temporal",
        "What has changed about people and things is to be known.",
        LossKind.LIKELIHOOD,
        -math.log(0.05),
        "temporal_train",
        "temporal_eval_clear",
        "temporal_hard_neg_eval_clear",
        "temporal_unconditional",
        source=f"{_SOURCE}; with texts of Wikipedia",
        licence=f"{_LICENCE}; Wikipedia's texts are CC BY-SA",
    ),
    CanonicalTask(
        "verb_conjugation",
        "Verbs are to agree with their subjects.",
        LossKind.PREFER,
        math.log(1 / 16),
        "verb_conjugation_train",
        "verb_conjugation_eval",
        "verb_conjugation_hard_neg_eval",
        "verb_conjugation_eval_unconditional",
        wording=re.compile(r"\. The (\w+)"),
        by_verb=True,
    ),
)


def find_canonical_task(name: str) -> CanonicalTask:
    """Return the task of that name.

    Raises:
        ConfigError: there is none.
    """
    for task in _TASKS:
        if task.name == name:
            return task
    raise unknown_name("canonical-examples task", name, (task.name for task in _TASKS))
