"""How a memory's scope is judged, apart from its answers."""

import pytest
import torch

from tuner.editing.corpus import Corpus
from tuner.editing.editor import Auxiliary
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Routes
from tuner.editing.task import Example, ExampleSet, LossKind, Split
from tuner.editors.look_up.editor import LookUp
from tuner.errors import EditError
from tuner.evaluation.metrics._routing import judge_routes, route_prompts, scope_figures

INF = torch.inf


def routes(*needed: float, entries: tuple[int, ...] | None = None) -> Routes:
    places = torch.arange(len(needed)) if entries is None else torch.tensor(entries)
    return Routes(places, torch.tensor(needed))


def test_precision_and_recall_are_counted_at_the_strength() -> None:
    inside, outside = routes(0.2, 0.9, 1.0, 3.0), routes(0.5, 2.0, 4.0)
    found = judge_routes(inside, outside, 1.0)
    assert found["scope_precision"] == 3 / 4
    assert found["scope_recall"] == 3 / 4
    wide = judge_routes(inside, outside, 3.0)
    assert (wide["scope_precision"], wide["scope_recall"]) == (4 / 6, 1.0)
    # Where scopes end does not matter to the order of the prompts.
    assert wide["scope_auc"] == found["scope_auc"] == (3 + 2 + 2 + 1) / 12


def test_recall_by_entry_wants_the_right_one() -> None:
    inside = routes(0.1, 0.1, 0.1, 5.0, entries=(0, 1, 1, 3))
    found = judge_routes(inside, routes(9.0), 1.0, wanted=(0, 0, 1, 3))
    assert found["scope_recall"] == 3 / 4
    assert found["scope_entry_recall"] == 2 / 4
    assert "scope_entry_recall" not in judge_routes(inside, routes(9.0), 1.0)


def test_ties_and_infinities_count_half() -> None:
    # Pairs: 1<1 tie, 1<inf; inf vs 1 lost, inf vs inf tie.
    found = judge_routes(routes(1.0, INF), routes(1.0, INF), 1.0)
    assert found["scope_auc"] == (0.5 + 1 + 0 + 0.5) / 4
    assert judge_routes(routes(INF, INF), routes(INF), 1.0)["scope_auc"] == 0.5
    assert judge_routes(routes(0.1), routes(INF), 1.0)["scope_auc"] == 1.0
    assert judge_routes(routes(INF), routes(0.1), 1.0)["scope_auc"] == 0.0


def test_what_is_not_defined_is_left_out() -> None:
    none_taken = judge_routes(routes(5.0), routes(6.0), 1.0)
    assert set(none_taken) == {"scope_recall", "scope_auc"}
    assert none_taken["scope_recall"] == 0.0
    # At strength 0 nothing is in scope, whatever it needs.
    assert judge_routes(routes(0.0), routes(6.0), 0.0)["scope_recall"] == 0.0
    assert set(judge_routes(routes(0.5), routes(), 1.0)) == {"scope_precision", "scope_recall"}
    with pytest.raises(EditError, match="NaN"):
        judge_routes(routes(float("nan")), routes(1.0), 1.0)


def rows(*prompts: str, of: str) -> tuple[Example, ...]:
    return tuple(Example(prompt=prompt, target=" big", record=of) for prompt in prompts)


def split_of(
    canonical: tuple[Example, ...], ood: tuple[Example, ...], hard: tuple[Example, ...]
) -> Split:
    def of(some: tuple[Example, ...]) -> ExampleSet:
        return ExampleSet(loss=LossKind.LIKELIHOOD, rows=some)

    return Split(canonical=of(canonical), ood=of(ood), hard_negatives=of(hard))


def test_a_look_up_cache_finds_its_own_prompts_and_their_entries(
    model: LanguageModel, corpus: Corpus
) -> None:
    canonical = (
        *rows("The capital of Togo is", of="a"),
        *rows("Port Louis is a big town of", of="b"),
    )
    # Out of scope, one prompt of an edit counts for the edit.
    hard = rows("Santiago Santiago", "The capital of Togo is", of="a")
    split = split_of(canonical, rows("The capital of Togo is", of="a"), hard)
    (step,) = LookUp(threshold=1e-3).edit(model, split.canonical, Auxiliary(general=corpus), seed=0)
    found = scope_figures(model, step.delta, split)
    assert found == {
        "scope_precision": 1.0,
        "scope_recall": 1.0,
        "scope_entry_recall": 1.0,
        "scope_auc": 1.0,
    }
    # An OOD row that is said to be of the other edit is found, but not by its entry.
    astray = split_of(canonical, rows("The capital of Togo is.", of="b"), hard)
    (step,) = LookUp(threshold=1e3).edit(model, astray.canonical, Auxiliary(general=corpus), seed=0)
    wide = scope_figures(model, step.delta, astray)
    assert wide["scope_recall"] == 1.0
    assert wide["scope_entry_recall"] == pytest.approx(2 / 3)
    assert wide["scope_precision"] == 3 / 4


def test_routes_are_read_in_batches_in_the_order_of_the_prompts(
    neox: LanguageModel, corpus: Corpus
) -> None:
    prompts = ["is", "The capital of Togo is", "a big town of Chile is", "Togo"] * 20
    (step,) = LookUp().edit(
        neox,
        ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows("Togo", of="a")),
        Auxiliary(general=corpus),
        seed=0,
    )
    together = route_prompts(neox, step.delta, prompts)
    alone = [route_prompts(neox, step.delta, [prompt]).needed for prompt in prompts]
    torch.testing.assert_close(together.needed, torch.cat(alone))
    with neox.edited(step.delta):
        inside = route_prompts(neox, step.delta, prompts)
    assert torch.equal(inside.needed, together.needed)
