"""Settings of published studies, written as spaces, load and run on their model families."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tuner.editing.corpus import Corpus
from tuner.editing.delta import WeightDelta
from tuner.editing.editor import Auxiliary
from tuner.editing.task import ExampleSet
from tuner.editors._locate_then_edit.layer_band_editor import SpreadingEditor
from tuner.search.space_file import load_space
from tuner.testing.tiny_models import make_tiny_model

# MEMIT on GPT-J: layers 3 to 8 of 28.
MEMIT_GPTJ = """
editor: memit
fixed:
  depth: 0.2963
  width: 0.2143
  learning_rate: 0.5
  target_steps: 25
  weight_decay: 0.5
  kl_weight: 0.0625
  covariance_weight: 15000
search:
  clamp: {type: float, low: 0.045, high: 0.98, log: true}
"""
# ROME on GPT-2 XL: layer 17 of 48.
ROME_GPT2 = """
editor: rome
fixed:
  depth: 0.3617
  learning_rate: 0.5
  target_steps: 20
  weight_decay: 0.5
  kl_weight: 0.0625
  prefixes: 20
  consistent_keys: false
search:
  clamp: {type: float, low: 3.0, high: 4.0}
"""
# AlphaEdit on Llama 3 8B: layers 4 to 8 of 32.
ALPHAEDIT_LLAMA = """
editor: alphaedit
fixed:
  depth: 0.2581
  width: 0.15625
  learning_rate: 0.1
  target_steps: 25
  weight_decay: 0.5
  kl_weight: 0.0625
  threshold: 0.02
  regulariser: 10
search:
  clamp: {type: float, low: 0.5, high: 0.75}
"""


@pytest.mark.parametrize(
    ("text", "family", "count", "layers"),
    [
        (MEMIT_GPTJ, "gptj", 28, [3, 4, 5, 6, 7, 8]),
        (ROME_GPT2, "gpt2", 48, [17]),
        (ALPHAEDIT_LLAMA, "llama", 32, [4, 5, 6, 7, 8]),
    ],
)
def test_published_settings_load_and_run(
    text: str,
    family: str,
    count: int,
    layers: list[int],
    tokenizer: PreTrainedTokenizerFast,
    examples: ExampleSet,
    corpus: Corpus,
    tmp_path: Path,
) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(text)
    space = load_space(path)
    editor = space.build({"clamp": 0.6 if family != "gpt2" else 4.0})
    # The relative depths mean the published layers on the published model.
    if isinstance(editor, SpreadingEditor):
        assert editor.layers(count) == layers
    else:
        assert [round(editor.model_dump()["depth"] * (count - 1))] == layers
    model = make_tiny_model(family, tokenizer)
    (step,) = editor.edit(model, examples, Auxiliary(corpus), seed=0)
    assert isinstance(step.delta, WeightDelta)
    assert step.delta.changes
