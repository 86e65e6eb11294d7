"""The published files that tuner knows where to find."""

from dataclasses import dataclass
from typing import final

from tuner.errors import unknown_name

_BAULAB = "https://memit.baulab.info/data/dsets"
_MIT = "MIT, as that of the repository kmeng01/memit, which publishes it"


@final
@dataclass(frozen=True)
class PublishedFile:
    """A file that others publish and tuner can read.

    Attributes:
        sha256: The checksum that its authors state, or None: none of the present files has one.
    """

    name: str
    about: str
    file_name: str
    source: str
    licence: str
    address: str = _BAULAB
    sha256: str | None = None

    def url(self, mirror: str | None = None) -> str:
        """Return where the file lies, at its home or in the same-named file of a mirror."""
        return f"{(mirror or self.address).rstrip('/')}/{self.file_name}"


_FILES = (
    PublishedFile(
        "counterfact",
        "CounterFact: 21,919 facts to be replaced. For `tuner data import counterfact`.",
        "counterfact.json",
        "Meng et al. 2022 (arXiv:2202.05262)",
        _MIT,
    ),
    PublishedFile(
        "multi_counterfact",
        "CounterFact without edits that contradict each other, for many edits at once.",
        "multi_counterfact.json",
        "Meng et al. 2023 (arXiv:2210.07229)",
        _MIT,
    ),
    PublishedFile(
        "attribute_snippets",
        "Texts that CounterFact's generations are compared with: the import's `--snippets`. Large.",
        "attribute_snippets.json",
        "Meng et al. 2022 (arXiv:2202.05262); texts from Wikipedia",
        "CC BY-SA, that of Wikipedia's texts; not stated with the file",
    ),
    PublishedFile(
        "tfidf_vocab",
        "Words of the published consistency metric, which counts words itself here.",
        "tfidf_vocab.json",
        "Meng et al. 2022 (arXiv:2202.05262)",
        _MIT,
    ),
    PublishedFile(
        "idf",
        "Rarity of these words in Wikipedia.",
        "idf.npy",
        "Meng et al. 2022 (arXiv:2202.05262)",
        _MIT,
    ),
    PublishedFile(
        "zsre",
        "zsRE, evaluation part: questions with answers. For `tuner data import zsre`.",
        "zsre_mend_eval.json",
        "Levy et al. 2017 (arXiv:1706.04115), selected by Mitchell et al. 2022 (arXiv:2110.11309)",
        "not stated with the file; its loc questions are from Natural Questions, CC BY-SA 3.0",
    ),
    PublishedFile(
        "zsre_train",
        "zsRE, training part, for editors that are trained.",
        "zsre_mend_train.json",
        "Levy et al. 2017 (arXiv:1706.04115), selected by Mitchell et al. 2022 (arXiv:2110.11309)",
        "not stated with the file; its loc questions are from Natural Questions, CC BY-SA 3.0",
    ),
)


def published_files() -> tuple[PublishedFile, ...]:
    """Return every file that can be fetched."""
    return _FILES


def find_published(name: str) -> PublishedFile:
    """Return the file of that name.

    Raises:
        ConfigError: there is none.
    """
    for file in _FILES:
        if file.name == name:
            return file
    raise unknown_name("published file", name, (file.name for file in _FILES))
