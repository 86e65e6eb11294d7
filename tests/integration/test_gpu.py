"""On a GPU: edits come and go bit for bit, bundles travel to a CPU, and trials share the card."""

from pathlib import Path

import pytest
import torch

import tuner
from tests.support.search_world import make_world, tiny_config
from tuner.editing.corpus import TextPart, load_general_text
from tuner.editing.model import Dtype
from tuner.search import Study
from tuner.trial.records import TrialState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

EPSILON = 0.1
PROMPT = "The capital of Mauritius is"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.25)])
def test_an_edit_made_on_a_gpu_is_kept_and_works_on_a_cpu(
    dtype: Dtype, tolerance: float, tmp_path: Path
) -> None:
    model = tuner.load_model("builtin:neox", dtype=dtype, device="cuda")
    general = load_general_text(
        None, model, tokens={TextPart.SEARCH: 8000, TextPart.AUXILIARY: 4000}
    )
    editor = tuner.find_editor("lora")(learning_rate=1e-2, epochs=5, batch_size=10)
    task, budget = tuner.load_task("country_capital"), tuner.Budget(epsilons=(EPSILON,))
    result = tuner.run_trial(model, task, editor, budget, general=general)
    model.check_unchanged()
    assert result.at(EPSILON).gain > 0
    bundle = tuner.make_bundle(model, task, result, EPSILON)
    assert bundle is not None
    folder = bundle.save(tmp_path / "edit")

    delta = tuner.Bundle.load(folder).delta
    here = tuner.load_model("builtin:neox", dtype=dtype, device="cpu")
    assert here.fingerprint == model.fingerprint
    ids = torch.tensor([model.encode_prompt(PROMPT)])
    with torch.no_grad(), model.edited(delta), here.edited(delta):
        there = model.network(input_ids=ids.to(model.device)).logits.float().cpu()
        torch.testing.assert_close(
            here.network(input_ids=ids).logits.float(), there, atol=tolerance, rtol=0.0
        )
    model.check_unchanged()


def test_two_workers_share_a_gpu(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    config = tiny_config(world, 4, device="cuda", workers=2, gpus_per_worker=0.5)
    result = Study(config, folder=tmp_path / "studies").run()
    assert [entry.state for entry in result.trials] == [TrialState.COMPLETED] * 4
    assert result.record.winners
