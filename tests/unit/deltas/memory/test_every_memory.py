"""What holds for every memory, present and future: each method whose kind is one is in the list."""

from pathlib import Path

import pytest

from tests.support.bundles import bundle_of
from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.bundle.export import export
from tuner.deltas.memory.memory import MemoryDelta
from tuner.deltas.registry import KINDS, find_kind
from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.model_names import is_model_name
from tuner.editing.task import Example, ExampleSet, LossKind, Split
from tuner.editors import editor_names, find_editor
from tuner.errors import ConfigError
from tuner.evaluation.identity import delta_hash
from tuner.files.cache import Cache, cache_folder
from tuner.testing.deltas import MemoryContract
from tuner.testing.tiny_models import save_model

MEMORIES = [
    kind
    for kind in KINDS.names()
    if issubclass(find_kind(kind), MemoryDelta) and kind in editor_names()
]


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, str], MemoryDelta]:
    """The memories made so far, by editor and family."""
    return {}


@pytest.mark.parametrize("name", MEMORIES)
class TestEveryMemory(MemoryContract):
    @pytest.fixture
    def delta(
        self,
        name: str,
        family: str,
        model: LanguageModel,
        corpus: Corpus,
        training: Split,
        tiny: str,
        made: dict[tuple[str, str], MemoryDelta],
    ) -> MemoryDelta:
        """A memory of one edit, in a tiny model of each family in turn; made once for all tests."""
        if (name, family) in made:
            return made[name, family]
        kind = find_editor(name)
        settings = dict(kind.smoke_settings)
        for field, info in kind.model_fields.items():
            if is_model_name(info) and field in settings:
                settings[field] = tiny
        editor = kind.model_validate(settings)
        try:
            editor.check_model(model, Companions())
        except ConfigError as error:
            pytest.skip(str(error))
        rows = (Example(prompt=self.text, target=" Santiago"),)
        examples = ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows)
        aux = Auxiliary(corpus, training=training, cache=Cache(cache_folder()))
        *_, step = editor.edit(model, examples, aux, seed=0)
        assert isinstance(step.delta, MemoryDelta)
        made[name, family] = step.delta
        return step.delta

    def test_a_bundle_finds_what_it_does_not_hold(
        self, name: str, memory: MemoryDelta, model: LanguageModel, tmp_path: Path
    ) -> None:
        # Some memories bring along the base's tokenizer, which they find where the base is.
        model.id = save_model(model, tmp_path / "base")
        found = Bundle.load(bundle_of(model, memory).save(tmp_path / "bundle")).delta
        assert isinstance(found, type(memory))
        assert delta_hash(found) == delta_hash(memory)

    def test_a_bundle_is_copied_while_its_models_are_out_of_reach(
        self, name: str, memory: MemoryDelta, model: LanguageModel, tmp_path: Path, tiny: str
    ) -> None:
        folder = bundle_of(model, memory).save(tmp_path / "bundle")
        text = (folder / "delta.json").read_text()
        (folder / "delta.json").write_text(text.replace(tiny, str(tmp_path / "gone")))
        assert export(StoredBundle.load(folder), tmp_path / "copy").format == "delta"
        again, stored = StoredBundle.load(tmp_path / "copy"), StoredBundle.load(folder)
        assert again.manifest == stored.manifest
