"""Families: rows, rows derived from a family's own modules, and refusals."""

import pytest
import torch

from tuner.editing.architectures import ARCHITECTURES, _derived, architecture_of
from tuner.editing.companions import Companions
from tuner.editing.delta import Delta, Dense, WeightDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editors import find_editor
from tuner.errors import ConfigError
from tuner.testing.editors import edits_of
from tuner.testing.tiny_models import DERIVED_FAMILIES, FAMILIES, make_tiny_model
from tuner.testing.tiny_task import tiny_corpus, tiny_examples, tiny_training

MIXTURES = ("gpt_oss", "mixtral")
WITH_MLP = tuple(family for family in DERIVED_FAMILIES if family not in MIXTURES)
MLP_METHODS = ("rome", "memit", "emmet", "alphaedit", "mend", "grace", "wise", "locft_bf", "lora")


@pytest.mark.parametrize("family", sorted(ARCHITECTURES.keys() - {"gpt2", "backpack"}))
def test_a_row_is_what_the_module_tree_says(family: str) -> None:
    # Conv1D hides its widths and is transposed, so GPT-2's kin need their row.
    network = make_tiny_model(family).network
    assert _derived(family, network) == ARCHITECTURES[family]


def edit(model: LanguageModel, editor: str, **settings: object) -> Delta:
    kind = find_editor(editor)
    made = kind.model_validate({**kind.smoke_settings, **settings})
    made.check_model(model, Companions("cpu"))
    aux = Auxiliary(general=tiny_corpus(), training=tiny_training())
    *_, last = edits_of(made, model, tiny_examples(), aux)
    return last


def logits(model: LanguageModel) -> torch.Tensor:
    """What a model says of a text that is longer than the windows of tiny models."""
    ids = model.encode_prompt("The capital city of Mauritius is Port Louis and a big town .")
    with torch.no_grad():
        answer: torch.Tensor = model.network(input_ids=torch.tensor([ids])).logits
    return answer


@pytest.mark.parametrize(
    ("family", "editor"),
    [
        *((family, editor) for family in WITH_MLP for editor in ("lora", "rome", "memit")),
        ("falcon", "mend"),  # its layers add to what an MLP says in place
    ],
)
def test_families_without_a_row_are_edited_all_the_same(family: str, editor: str) -> None:
    assert family not in ARCHITECTURES
    model = make_tiny_model(family)
    last = edit(model, editor)
    before = logits(model)
    assert last.tensors()
    with model.edited(last):
        assert not torch.equal(before, logits(model))
    model.check_unchanged()


@pytest.mark.parametrize("editor", ["lora", "full_finetuning"])
@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_is_edited_outside_its_experts_or_as_a_whole(family: str, editor: str) -> None:
    model = make_tiny_model(family)
    last = edit(model, editor, **({"maps": "all"} if editor == "lora" else {}))
    before = logits(model)
    with model.edited(last):
        assert not torch.equal(before, logits(model))
    model.check_unchanged()
    experts = [name for name in last.tensors() if "experts" in name]
    assert bool(experts) == (editor == "full_finetuning")


@pytest.mark.parametrize("editor", MLP_METHODS)
@pytest.mark.parametrize("family", MIXTURES)
def test_a_method_that_edits_an_mlp_refuses_a_mixture_in_words(family: str, editor: str) -> None:
    model = make_tiny_model(family)
    kind = find_editor(editor)
    made = kind.model_validate(dict(kind.smoke_settings))
    with pytest.raises(
        ConfigError, match=f"'{family}' have none each: the experts .* `maps: all`, or full_fine"
    ):
        made.check_model(model, Companions("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_nothing_leaves_every_logit_as_it_was(family: str) -> None:
    model = make_tiny_model(family)
    name, weight = next(
        (name, weight) for name, weight in model.network.named_parameters() if "att" in name
    )
    nothing = WeightDelta({name: Dense(torch.zeros_like(weight))})
    before = logits(model)
    with model.edited(nothing):
        assert torch.equal(logits(model), before)
    # Soft caps, windows, tied embeddings and rotary tables are a twin's as well.
    assert torch.equal(logits(model.after(nothing)), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_reads_a_text_at_once_and_token_by_token_alike(family: str) -> None:
    # What generation with a cache says, windows included, is what one reading of the text says.
    model = make_tiny_model(family)
    ids = torch.tensor([model.encode_prompt("The capital city of Togo is Lome and")])
    said = model.continue_greedily(ids, torch.ones_like(ids), 6)
    with torch.no_grad():
        whole = model.network(input_ids=torch.cat([ids, said], dim=1)).logits
    assert torch.equal(whole[0, ids.shape[1] - 1 : -1].argmax(dim=1), said[0])


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mamba", "not every layer has attention, and recurrent ones are unknown"),
        ("gemma3", "it reads more than text; save its language model alone"),
        ("bert_of_tomorrow", "transformers has no such causal model"),
    ],
)
def test_what_no_method_can_edit_is_refused_in_words(family: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{family}.*{reason}"):
        architecture_of(family)


@pytest.mark.parametrize("family", ["qwen3_moe", "olmo3", "glm4", "granite", "starcoder2"])
def test_a_tiny_model_of_a_family_that_nobody_named_is_made(family: str) -> None:
    model = make_tiny_model(family)
    assert sum(weight.numel() for weight in model.network.parameters()) < 200_000
    assert model.layer_count == 3


def test_a_model_whose_mlp_is_not_linear_is_refused() -> None:
    network = make_tiny_model("llama").network
    network.model.layers[1].mlp.down_proj = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.down_proj' is Identity"):
        LanguageModel(network, make_tiny_model("llama").tokenizer, id="odd")
