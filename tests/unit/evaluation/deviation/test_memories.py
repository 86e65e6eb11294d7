"""General text under a memory: judged in parts, each behind all that stands before it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.likelihood import token_losses
from tuner.editing.model import LanguageModel
from tuner.editors.look_up.memory import LookUpDelta
from tuner.evaluation.deviation.budget import Verdict
from tuner.evaluation.deviation.memories import MemoryDeviation
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.files.cache import Cache

LOGIT = 3.0


def _memory(model: LanguageModel, threshold: float, target: tuple[int, ...] = (7,)) -> LookUpDelta:
    keys = torch.zeros(1, model.network.config.hidden_size)
    return LookUpDelta(1.0, keys, (target,), threshold, LOGIT, model.end_id)


def test_what_is_in_scope_costs_what_the_stored_answer_costs(
    neox: LanguageModel, corpus: Corpus
) -> None:
    rows = range(3)
    ids = corpus.blocks[:3]
    length = ids.shape[1]
    starts = [length * part // 8 for part in range(1, 9)]
    said = torch.full_like(ids, neox.end_id)
    said[:, starts[:-1]] = 7
    sure = math.log(math.exp(LOGIT) + neox.network.config.vocab_size - 1)
    answered = sure - LOGIT * (said == ids)
    with torch.no_grad():
        logits = neox.network(ids).logits[:, :-1]
    base = token_losses(logits, ids[:, 1:])
    # The first part is only ever read as a prompt.
    expected = (answered[:, starts[0] :] - base[:, starts[0] - 1 :]).sum(dim=1).double()
    found = MemoryDeviation(neox, corpus.blocks, batch=2).changes(_memory(neox, 1e6), rows).losses
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_no_part_is_routed_by_what_is_still_to_come(neox: LanguageModel, corpus: Corpus) -> None:
    ids = corpus.blocks[:4].clone()
    other = ids.clone()
    other[:, ids.shape[1] // 2 :] = 5
    memory = _memory(neox, 1.0)
    one, two = (
        MemoryDeviation(neox, blocks, batch=4)._routes_of(memory, range(4))
        for blocks in (ids, other)
    )
    # Prompts end after one to seven eighths; four of them before the change.
    for here, there in zip(one[:4], two[:4], strict=True):
        torch.testing.assert_close(here.needed, there.needed)
    assert not torch.equal(one[-1].needed, two[-1].needed)


def test_a_meter_tells_a_memory_that_answers_text_from_one_that_does_not(
    neox: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    meter = DeviationMeter(neox, corpus, confidence=0.95, cache=Cache(tmp_path))
    # A sure answer to all that is asked costs dearly even on the text of a random model.
    wide, narrow = replace(_memory(neox, 1e6), logit=20.0), _memory(neox, 1e-6)
    assert meter.measure(wide, (1e-3,)).verdict(1e-3) is Verdict.OVER
    deviation = meter.measure(narrow, (1e-3,))
    assert deviation.estimate == 0
    # On so little text it is not sure that no prompt will ever be in scope.
    assert deviation.verdict(1e-3) is Verdict.UNRESOLVED


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_strengths_of_one_memory_share_their_routes(
    neox: LanguageModel, corpus: Corpus, alpha: float
) -> None:
    memory, rows = _memory(neox, 5.0), range(4)
    shared = MemoryDeviation(neox, corpus.blocks, batch=4)
    shared.changes(memory, rows)
    fresh = MemoryDeviation(neox, corpus.blocks, batch=4)
    scaled = memory.scaled(alpha)
    assert torch.equal(shared.changes(scaled, rows).losses, fresh.changes(scaled, rows).losses)
    assert scaled.routes_as(memory)
    assert not _memory(neox, 5.0, target=(8,)).routes_as(memory)
