"""Families: rows, rows derived from a family's own modules, and refusals."""

import pytest
import torch

from tuner.editing.architectures import ARCHITECTURES, _derived, architecture_of
from tuner.editing.companions import Companions
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editors import find_editor
from tuner.errors import ConfigError
from tuner.testing.editors import edits_of
from tuner.testing.tiny_models import FAMILIES, make_tiny_model
from tuner.testing.tiny_task import tiny_corpus, tiny_examples

DERIVED = ("gemma2", "phi", "qwen3", "olmo2", "stablelm", "falcon", "gpt_neo")


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gpt2", "backpack")])
def test_a_row_is_what_the_module_tree_says(family: str) -> None:
    # Conv1D hides its widths and is transposed, so GPT-2's kin need their row.
    network = make_tiny_model(family).network
    assert _derived(family, network) == ARCHITECTURES[family]


@pytest.mark.parametrize("editor", ["lora", "rome", "memit"])
@pytest.mark.parametrize("family", DERIVED)
def test_families_without_a_row_are_edited_all_the_same(family: str, editor: str) -> None:
    assert family not in ARCHITECTURES
    model = make_tiny_model(family)
    kind = find_editor(editor)
    made = kind.model_validate(dict(kind.smoke_settings))
    made.check_model(model, Companions("cpu"))
    examples = tiny_examples()
    *_, last = edits_of(made, model, examples, Auxiliary(general=tiny_corpus()))
    names = {name.removesuffix(".weight") for name in last.tensors()}
    with torch.no_grad():
        ids = torch.tensor([model.encode_prompt(examples.rows[0].prompt)])
        before = model.network(input_ids=ids).logits
        with model.edited(last):
            after = model.network(input_ids=ids).logits
    assert names
    assert not torch.equal(before, after)
    model.check_unchanged()


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("mixtral", "each of its layers has 0 MLPs of linear maps where one is needed"),
        ("phi3", "each of its layers has 0 MLPs of linear maps where one is needed"),
        ("mamba", "each of its layers has 0 MLPs of linear maps where one is needed"),
        ("bert_of_tomorrow", "transformers has no such causal model"),
    ],
)
def test_what_no_method_can_edit_is_refused_in_words(family: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"{family}.*{reason}"):
        architecture_of(family)


def test_a_model_whose_mlp_is_not_linear_is_refused() -> None:
    network = make_tiny_model("llama").network
    network.model.layers[1].mlp.down_proj = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.down_proj' is Identity"):
        LanguageModel(network, make_tiny_model("llama").tokenizer, id="odd")
