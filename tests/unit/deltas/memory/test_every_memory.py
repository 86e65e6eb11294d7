"""What holds for every memory, present and future: each editor that makes one is in the list."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.bundles import bundle_of
from tests.support.tiny_models import save_model
from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.bundle.export import export
from tuner.deltas.memory.memory import MemoryDelta
from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts, prompts_end_at
from tuner.editing.task import Example, ExampleSet, LossKind, Split
from tuner.editors import find_editor
from tuner.errors import ConfigError
from tuner.evaluation.deviation.memories import MemoryDeviation
from tuner.files.cache import Cache, cache_folder

# Narrow enough that the prompts below are told apart, wide enough that theirs are in scope.
SETTINGS: dict[str, dict[str, float | int | str]] = {
    "grace": {"radius": 0.1, "value_steps": 20},
    "look_up": {"threshold": 0.01},
    "retrieve_and_prompt": {"classifier_learning_rate": 1e-2, "classifier_steps": 40},
    "serac": {
        "classifier_learning_rate": 1e-2,
        "classifier_steps": 40,
        "counterfactual_learning_rate": 1e-2,
        "counterfactual_steps": 20,
    },
    "wise": {
        "most_steps": 60,
        "prefixes": 0,
        "shards": 1,
        "mask_share": 1.0,
        "density": 1.0,
        "unrelated": 16,
        "learning_rate": 0.3,
        "act_ratio": 0.88,
    },
}
EDITED = "The capital of Togo is"
OTHER = "a big town and a city"
NEW_TOKENS = 4


@pytest.fixture(params=sorted(SETTINGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def made() -> dict[tuple[str, str], MemoryDelta]:
    """The memories made so far, by editor and family."""
    return {}


@pytest.fixture
def memory(
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
    known = {"classifier": tiny, "counterfactual": tiny}
    beside = {field: folder for field, folder in known.items() if field in kind.model_fields}
    editor = kind.model_validate({**SETTINGS[name], **beside})
    try:
        editor.check_model(model, Companions())
    except ConfigError as error:
        pytest.skip(str(error))
    rows = (Example(prompt=EDITED, target=" Santiago"),)
    examples = ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows)
    aux = Auxiliary(corpus, training=training, cache=Cache(cache_folder()))
    *_, step = editor.edit(model, examples, aux, seed=0)
    assert isinstance(step.delta, MemoryDelta)
    made[name, family] = step.delta
    return step.delta


def _generate(model: LanguageModel, *prompts: str, **settings: object) -> list[list[int]]:
    """What follows each prompt, padded on the left as one batch."""
    rows = [model.encode_prompt(prompt) for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([[model.end_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    said: Tensor = model.network.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=model.end_id,
        **settings,
    )
    return said[:, width:].tolist()


def _logits(model: LanguageModel, ids: Tensor, end: int) -> Tensor:
    with torch.no_grad(), prompts_end_at(end):
        logits: Tensor = model.network(input_ids=ids, use_cache=False).logits
    return logits


def _routes(model: LanguageModel, memory: MemoryDelta, *prompts: str) -> Tensor:
    rows = Prompts.of([model.encode_prompt(prompt) for prompt in prompts], model.device)
    return memory.route(model.network, rows).inside(memory.strength)


def test_the_edited_prompt_is_in_scope_and_another_is_not(
    memory: MemoryDelta, model: LanguageModel
) -> None:
    assert _routes(model, memory, EDITED, OTHER).tolist() == [True, False]


def test_the_beginnings_of_a_text_are_routed_as_prompts_are(
    memory: MemoryDelta, model: LanguageModel, corpus: Corpus
) -> None:
    texts, ends = corpus.blocks[:8], (4, 9, 16)
    found = memory.routes_before(model.network, texts, ends)
    for end, routes in zip(ends, found, strict=True):
        alone = memory.route(model.network, Prompts.whole(texts[:, :end]))
        assert torch.equal(routes.entries, alone.entries)
        assert torch.allclose(routes.needed, alone.needed, rtol=1e-3)


def test_only_what_is_in_scope_changes_and_only_from_the_end_of_the_prompt_on(
    memory: MemoryDelta, model: LanguageModel
) -> None:
    edited, other = model.encode_prompt(EDITED), model.encode_prompt(OTHER)
    more = model.encode(" Port Louis")
    for prompt, changes in ((edited, True), (other, False)):
        ids = torch.tensor([[*prompt, *more]])
        before = _logits(model, ids, len(prompt))
        with model.edited(memory):
            after = _logits(model, ids, len(prompt))
        last = len(prompt) - 1
        # Memories inside the model may act on the prompt; what it says there is never judged.
        assert torch.equal(before[:, last:], after[:, last:]) != changes


def test_padding_batches_and_caches_change_no_token(
    memory: MemoryDelta, model: LanguageModel
) -> None:
    plain = [*_generate(model, EDITED), *_generate(model, OTHER)]
    with model.edited(memory):
        single = [*_generate(model, EDITED), *_generate(model, OTHER)]
        together = _generate(model, EDITED, OTHER)
        without_cache = _generate(model, EDITED, OTHER, use_cache=False)
    assert single == together == without_cache
    assert single[1] == plain[1]
    assert _generate(model, EDITED) == plain[:1]


def test_beams_are_the_same_with_and_without_a_cache(
    memory: MemoryDelta, model: LanguageModel
) -> None:
    with model.edited(memory):
        cached = _generate(model, EDITED, OTHER, num_beams=3)
        assert cached == _generate(model, EDITED, OTHER, num_beams=3, use_cache=False)


def test_reading_a_text_at_once_is_the_same_as_going_on_from_a_cache(
    memory: MemoryDelta, model: LanguageModel
) -> None:
    prompt, more = model.encode_prompt(EDITED), model.encode(" Port Louis and")
    ids = torch.tensor([[*prompt, *more]])
    with torch.no_grad(), model.edited(memory):
        whole = _logits(model, ids, len(prompt))[:, len(prompt) - 1 :]
        with prompts_end_at(len(prompt)):
            read = model.network(input_ids=ids[:, : len(prompt)], use_cache=True)
            steps = [read.logits[:, -1:]]
            for token in ids[0, len(prompt) :]:
                read = model.network(
                    input_ids=token.reshape(1, 1),
                    past_key_values=read.past_key_values,
                    use_cache=True,
                )
                steps.append(read.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)


def test_a_cache_without_its_prompt_is_refused(memory: MemoryDelta, model: LanguageModel) -> None:
    ids = torch.tensor([model.encode_prompt(EDITED)])
    with torch.no_grad(), model.edited(memory):
        cache = model.network(input_ids=ids, use_cache=True).past_key_values
        with pytest.raises(ConfigError, match="must see a prompt as a whole"):
            model.network(input_ids=ids[:, :1], past_key_values=cache)


def test_the_model_is_as_before_outside_and_at_no_strength(
    memory: MemoryDelta, model: LanguageModel
) -> None:
    ids = torch.tensor([model.encode_prompt(EDITED)])
    before = _logits(model, ids, ids.shape[1])
    with model.edited(memory):
        pass
    assert torch.equal(_logits(model, ids, ids.shape[1]), before)
    with model.edited(memory.scaled(0.0)):
        assert torch.equal(_logits(model, ids, ids.shape[1]), before)
    assert "generate" not in vars(model.network)


def test_strength_widens_scopes(memory: MemoryDelta, model: LanguageModel) -> None:
    rows = Prompts.of([model.encode_prompt(OTHER)], model.device)
    needed = memory.route(model.network, rows).needed
    if torch.isinf(needed).all():
        pytest.skip("no strength reaches this prompt")
    wide = memory.scaled(float(needed) * 1.01 / memory.strength)
    assert _routes(model, wide, OTHER).tolist() == [True]
    narrow = memory.scaled(float(needed) * 0.99 / memory.strength)
    assert _routes(model, narrow, OTHER).tolist() == [False]


def test_a_bundle_keeps_it(memory: MemoryDelta, model: LanguageModel, tmp_path: Path) -> None:
    # Some memories bring along the base's tokenizer, which they find where the base is.
    model.id = save_model(model, tmp_path / "base")
    bundle = bundle_of(model, memory)
    with model.edited(memory):
        said = _generate(model, EDITED, OTHER)
    found = Bundle.load(bundle.save(tmp_path / "bundle")).delta
    assert isinstance(found, MemoryDelta)
    assert found.state == memory.state
    with model.edited(found):
        assert _generate(model, EDITED, OTHER) == said


def test_a_bundle_is_copied_without_the_models_that_it_names(
    memory: MemoryDelta, model: LanguageModel, tmp_path: Path, tiny: str
) -> None:
    model.id = str(tmp_path / "nowhere")
    folder = bundle_of(model, memory).save(tmp_path / "bundle")
    text = (folder / "delta.json").read_text()
    (folder / "delta.json").write_text(text.replace(tiny, str(tmp_path / "gone")))
    stored = StoredBundle.load(folder)
    assert export(stored, tmp_path / "copy").format == "delta"
    again = StoredBundle.load(tmp_path / "copy")
    assert again.manifest == stored.manifest
    assert again.tensors.keys() == memory.tensors().keys()
    assert all(torch.equal(again.tensors[name], one) for name, one in memory.tensors().items())


def test_text_outside_all_scopes_changes_by_nothing(
    memory: MemoryDelta, model: LanguageModel, corpus: Corpus
) -> None:
    reading = MemoryDeviation(model, corpus.blocks, batch=4)
    rows = range(min(6, len(corpus.blocks)))
    rises = reading.rises(memory, rows)
    assert rises[~reading.changeable(memory, rows)].abs().sum() == 0
    wide = memory.scaled(1e9)
    if reading.changeable(wide, rows).any():
        assert (reading.rises(wide, rows) != 0).any()
