"""Where prompts end: said in a context, by `generate`, or not at all."""

import pytest
import torch

from tuner.editing.forward_call import Call
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts, Routes, Turn, Turns, aside, prompts_end_at
from tuner.errors import ConfigError


def _call(model: LanguageModel, ids: torch.Tensor, **given: object) -> Call:
    return Call.of("A memory", model.network.forward, (), {"input_ids": ids, **given})


def test_prompts_are_told_from_padding_on_either_side() -> None:
    ids = torch.tensor([[0, 5, 6, 7], [1, 2, 0, 0]])
    mask = torch.tensor([[False, True, True, True], [True, True, False, False]])
    prompts = Prompts(ids, mask)
    assert prompts.tokens() == [[5, 6, 7], [1, 2]]
    assert prompts.last.tolist() == [3, 1]
    assert prompts.positions.tolist() == [[0, 0, 1, 2], [0, 1, 1, 1]]
    again = Prompts.of([[5, 6, 7], [1, 2]], torch.device("cpu"))
    assert again.tokens() == prompts.tokens()


def test_a_turn_tells_prompts_from_what_follows(neox: LanguageModel) -> None:
    turn = Turn((3, 2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    turn.read(_call(neox, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]]), attention_mask=mask))
    assert turn.prompts.tokens() == [[1, 2, 3], [5, 6]]
    assert turn.continuations() == [[4], [7]]


def test_ends_must_be_as_many_as_rows(neox: LanguageModel) -> None:
    turn = Turn((3, 2))
    turn.read(_call(neox, torch.tensor([[1, 2, 3, 4]])))
    with pytest.raises(ConfigError, match="2 ends of prompts were given for 1 rows"):
        _ = turn.prompts


def test_a_cache_from_elsewhere_is_refused(neox: LanguageModel) -> None:
    ids = torch.tensor([[1, 2, 3]])
    cache = neox.network(ids, use_cache=True).past_key_values
    with pytest.raises(ConfigError, match="must see a prompt as a whole"):
        Turn(None).read(_call(neox, ids[:, :1], past_key_values=cache))


def test_passes_are_followed_but_not_aside_and_not_after(neox: LanguageModel) -> None:
    ids = torch.tensor([[1, 2, 3]])
    seen: list[list[list[int]] | None] = []

    def look(*_: object) -> None:
        turn = turns.turn
        seen.append(None if turn is None else turn.prompts.tokens())

    with neox.network.gpt_neox.register_forward_hook(look), Turns.followed(neox.network) as turns:
        neox.network(ids)
        with prompts_end_at(2):
            neox.network(ids)
        with aside():
            neox.network(ids)
        assert turns.turn is None
    assert seen == [[[1, 2, 3]], [[1, 2]], None]


def test_an_error_leaves_nothing_behind(neox: LanguageModel) -> None:
    with pytest.raises(RuntimeError), Turns.followed(neox.network), prompts_end_at(1):
        raise RuntimeError
    assert "generate" not in vars(neox.network)
    with Turns.followed(neox.network) as turns:
        turn = Turn(None)
        turn.read(_call(neox, torch.tensor([[1, 2, 3]])))
        assert turn.prompts.tokens() == [[1, 2, 3]]
        assert turns.turn is None


def test_nothing_is_inside_at_no_strength() -> None:
    routes = Routes(torch.tensor([0, 0, 0]), torch.tensor([0.0, 0.5, torch.inf]))
    assert routes.inside(0.0).tolist() == [False, False, False]
    assert routes.inside(0.5).tolist() == [True, True, False]
    assert routes.inside(1e9).tolist() == [True, True, False]
