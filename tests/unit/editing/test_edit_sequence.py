"""Edits one batch after another: what is carried from each to the next, and what it costs."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, final

import pytest
import torch
from torch import Tensor

from tuner.editing.companions import Companions
from tuner.editing.corpus import Corpus
from tuner.editing.delta import LowRank, WeightDelta
from tuner.editing.editor import Auxiliary, Editor, EditSequence, EpochEdit
from tuner.editing.model import LanguageModel
from tuner.editing.subject import locate_subject
from tuner.editing.task import Example, ExampleSet, LossKind, Split
from tuner.editors import find_editor
from tuner.editors._locate_then_edit.key_covariance import second_moments
from tuner.editors._locate_then_edit.target_vectors import target_vectors
from tuner.editors._retrieval.memory import ScopedMemory
from tuner.editors.alphaedit import AlphaEdit
from tuner.editors.grace.editor import Grace
from tuner.editors.grace.memory import GraceDelta
from tuner.editors.look_up.editor import LookUp
from tuner.editors.look_up.memory import LookUpDelta
from tuner.editors.memit import Memit
from tuner.editors.rome import Rome
from tuner.editors.wise.editor import Wise
from tuner.editors.wise.memory import WiseDelta
from tuner.errors import EditError
from tuner.files.cache import Cache, cache_folder

PLACES = ("Togo", "Chile", "Mauritius", "Lome", "Santiago", "Port")
EDITS = ExampleSet(
    loss=LossKind.LIKELIHOOD,
    rows=tuple(
        Example(prompt=f"The capital city of {place} is", target=" Louis", subject=place)
        for place in PLACES
    ),
)


def _batch(*numbers: int) -> ExampleSet:
    return EDITS.model_copy(update={"rows": tuple(EDITS.rows[number] for number in numbers)})


def _dense(step: EpochEdit, model: LanguageModel) -> dict[str, Tensor]:
    assert isinstance(step.delta, WeightDelta)
    return {
        name: change.to_dense(model.network.get_parameter(name).shape)
        for name, change in step.delta.changes.items()
    }


def _copy(model: LanguageModel, names: Collection[str]) -> LanguageModel:
    """The model with some weights of its own, which may be written to."""
    return LanguageModel(model.twin(own=names), model.tokenizer, id="copy")


def _at_subjects(model: LanguageModel, path: str, rows: ExampleSet, *, inside: bool) -> Tensor:
    """What a module reads or says at each subject's last token, one row at a time, as columns."""
    seen: list[Tensor] = []

    def keep(_: object, inputs: tuple[Tensor, ...], output: Any) -> None:
        seen.append(inputs[0] if inside else output[0] if isinstance(output, tuple) else output)

    handle = model.network.get_submodule(path).register_forward_hook(keep)
    found = []
    for row in rows.rows:
        prompt = locate_subject(model, row.prompt, row.subject)
        with torch.no_grad():
            model.network(input_ids=torch.tensor([prompt.ids]))
        found.append(seen[-1][0, prompt.position].double())
    handle.remove()
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("kind", ["memit", "alphaedit"])
@pytest.mark.parametrize("accumulate", [True, False])
def test_keys_are_read_once_on_the_model_that_their_own_batch_left(
    kind: str, accumulate: bool, neox: LanguageModel, corpus: Corpus
) -> None:
    """The published order, written out: the sum of kkᵀ grows after the whole of a batch."""
    shared = {"depth": 0.5, "width": 0.6, "prefixes": 0, "target_steps": 4, "kl_weight": 0.0}
    editor: Memit | AlphaEdit = (
        Memit(covariance_weight=0.5, accumulate=accumulate, **shared)
        if kind == "memit"
        else AlphaEdit(null_share=0.8, regulariser=0.3, accumulate=accumulate, **shared)
    )
    batches = [_batch(0, 1), _batch(2), _batch(3, 4)]
    layers = [0, 1]
    moments = second_moments(neox, corpus, layers, None)
    maps = {layer: neox.architecture.mlp_modules(layer)[-1] for layer in layers}
    settings = editor.target_settings(1, "layer", ())
    model = _copy(neox, [f"{path}.weight" for path in maps.values()])
    sums: dict[int, Tensor] = {layer: torch.zeros(64, 64).double() for layer in layers}
    for batch in batches:
        wanted = target_vectors(model, batch, settings, None).T
        for number, layer in enumerate(layers):
            keys = _at_subjects(model, maps[layer], batch, inside=True)
            now = _at_subjects(model, neox.architecture.layer_module(1), batch, inside=False)
            residuals = (wanted - now) / (len(layers) - number)
            c = moments[layer].factor @ moments[layer].factor.T
            if kind == "memit":
                inverse = torch.linalg.inv(0.5 * c + sums[layer] + keys @ keys.T)
                change = residuals @ keys.T @ inverse
            else:
                free = torch.linalg.eigh(moments[layer].matrix).eigenvectors[:, : round(0.8 * 64)]
                project = free @ free.T
                held = project @ (sums[layer] + keys @ keys.T) + 0.3 * torch.eye(64).double()
                change = torch.linalg.solve(held, project @ keys @ residuals.T).T
            weight = model.network.get_parameter(f"{maps[layer]}.weight")
            with torch.no_grad():
                weight.copy_((weight.double() + change).float())
        if accumulate:
            for layer in layers:
                keys = _at_subjects(model, maps[layer], batch, inside=True)
                sums[layer] = sums[layer] + keys @ keys.T
    sequence = EditSequence(editor, neox, Auxiliary(corpus))
    for batch in batches:
        step = sequence.make(batch, seed=0)
    for layer in layers:
        name = f"{maps[layer]}.weight"
        expected = model.network.get_parameter(name) - neox.network.get_parameter(name)
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(_dense(step, neox)[name], expected, rtol=2e-3, atol=2e-4)


_VECTORS = {"target_steps": 3, "prefixes": 1}
_CHEAP: dict[str, dict[str, Any]] = {
    "alphaedit": {**_VECTORS, "null_share": 0.9},
    "emmet": _VECTORS,
    "ensemble": {"learning_rate": 0.01, "epochs": 1},
    "full_finetuning": {"learning_rate": 1e-3, "epochs": 1},
    "grace": {"value_steps": 2, "radius": 1e-3},
    "look_up": {},
    "lora": {"learning_rate": 1e-3, "epochs": 1, "rank": 1},
    "memit": _VECTORS,
    "mend": {"rank": 2, "training_steps": 1, "check_every": 1},
    "retrieve_and_prompt": {"classifier_steps": 1},
    "rome": _VECTORS,
    "serac": {"classifier_steps": 1, "counterfactual_steps": 1},
    "wise": {"most_steps": 2, "prefixes": 1, "stop_below": 1e-9, "edits_per_side": 2},
}


@contextmanager
def _rows_read() -> Iterator[list[int]]:
    """Count the rows of token ids that any network embeds inside the context."""
    count = [0]

    def note(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2:
            count[0] += len(inputs[0])

    plain = torch.nn.Embedding.forward

    def counted(self: torch.nn.Embedding, ids: Tensor) -> Tensor:
        note(self, (ids,))
        return plain(self, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Embedding, "forward", counted)
        yield count


@pytest.mark.parametrize("name", sorted(_CHEAP))
def test_an_edit_reads_as_much_wherever_it_stands(
    name: str,
    neox: LanguageModel,
    corpus: Corpus,
    training: Split,
    small: str,
    tiny: str,
) -> None:
    kind = find_editor(name)
    known = {"small": small, "classifier": tiny, "counterfactual": tiny}
    beside = {field: folder for field, folder in known.items() if field in kind.model_fields}
    editor: Editor = kind.model_validate({**_CHEAP[name], **beside})
    aux = Auxiliary(
        corpus, training=training, cache=Cache(cache_folder()), companions=Companions("cpu")
    )
    sequence = EditSequence(editor, neox, aux)
    read = []
    for number in range(len(PLACES)):
        with _rows_read() as count:
            step = sequence.make(_batch(number), seed=0)
            if isinstance(step.delta, ScopedMemory):
                # A memory of text embeds its edits when it is first asked, and each edit once.
                step.delta.scope.routes(["The capital city of Togo is"])
        read.append(count[0])
    # The first edit fills caches; the second carries what it left for the first time.
    assert read[2:] == [read[2]] * (len(PLACES) - 2)
    neox.check_unchanged()


def test_a_codebook_that_grows_is_the_one_that_is_made_at_once(
    neox: LanguageModel, corpus: Corpus
) -> None:
    editor = Grace(start="warm", value_steps=3, learning_rate=0.1, radius=5.0)
    (whole,) = editor.edit(neox, EDITS, Auxiliary(corpus), seed=0)
    sequence = EditSequence(editor, neox, Auxiliary(corpus))
    for number in range(len(PLACES)):
        step = sequence.make(_batch(number), seed=number)
    one, other = step.delta, whole.delta
    assert isinstance(one, GraceDelta)
    assert isinstance(other, GraceDelta)
    assert one.targets == other.targets
    torch.testing.assert_close(one.keys, other.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.radii, other.radii, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.values, other.values, rtol=2e-2, atol=2e-3)


def test_a_look_up_cache_that_grows_is_the_one_that_is_made_at_once(
    neox: LanguageModel, corpus: Corpus
) -> None:
    (whole,) = LookUp().edit(neox, EDITS, Auxiliary(corpus), seed=0)
    *_, grown = LookUp(batches=3).edit(neox, EDITS, Auxiliary(corpus), seed=0)
    assert isinstance(grown.delta, LookUpDelta)
    assert isinstance(whole.delta, LookUpDelta)
    assert grown.delta.targets == whole.delta.targets
    torch.testing.assert_close(grown.delta.keys, whole.delta.keys, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["merge", "retrieve"])
def test_side_memories_fill_up_one_after_the_other(
    mode: str, neox: LanguageModel, corpus: Corpus
) -> None:
    editor = Wise.model_validate(
        {"mode": mode, "shards": 2, "edits_per_side": 2, "most_steps": 3, "prefixes": 0}
    )
    sequence = EditSequence(editor, neox, Auxiliary(corpus))
    found = []
    for number in range(len(PLACES)):
        step = sequence.make(_batch(number), seed=number)
        assert isinstance(step.delta, WiseDelta)
        found.append(step.delta)
    if mode == "retrieve":
        # Two edits each, and those that are full stay as they are.
        assert [len(memory.changes) for memory in found] == [1, 1, 2, 2, 3, 3]
        assert torch.equal(found[-1].changes[0], found[1].changes[0])
        assert torch.equal(found[-1].changes[1], found[3].changes[1])
        assert found[-1].thresholds[0] == found[1].thresholds[0]
        return
    shares = [float((memory.changes[0] != 0).float().mean()) for memory in found]
    assert [len(memory.changes) for memory in found] == [1] * 6
    # A second mask after two edits; a third after four, when the two before it were merged.
    assert shares[0] == pytest.approx(0.2, abs=0.03)
    assert shares[2] == pytest.approx(0.36, abs=0.04)
    assert shares[4] == pytest.approx(0.49, abs=0.05)
    # The least difference of all edits so far, each read when it was made.
    thresholds = [float(memory.thresholds[0]) for memory in found]
    assert thresholds == sorted(thresholds, reverse=True)


def test_a_later_edit_of_a_stored_prompt_takes_the_old_one_s_place(
    neox: LanguageModel, corpus: Corpus, training: Split, tiny: str
) -> None:
    editor = find_editor("retrieve_and_prompt").model_validate(
        {"classifier": tiny, "classifier_steps": 1}
    )
    sequence = EditSequence(editor, neox, Auxiliary(corpus, training=training))
    sequence.make(_batch(0, 1), seed=0)
    other = EDITS.rows[0].model_copy(update={"target": " Lome"})
    step = sequence.make(EDITS.model_copy(update={"rows": (other,)}), seed=1)
    assert isinstance(step.delta, ScopedMemory)
    assert [edit.target for edit in step.delta.edits] == [" Louis", " Lome"]


def test_a_sum_of_low_ranks_has_no_higher_rank_than_a_matrix_can_have() -> None:
    random = torch.Generator().manual_seed(0)
    for shape in ((4, 7), (7, 4)):
        parts = [
            LowRank(
                torch.randn(shape[0], 1, generator=random),
                torch.randn(1, shape[1], generator=random),
            )
            for _ in range(9)
        ]
        total = WeightDelta({"one": parts[0]})
        for part in parts[1:]:
            total = total.plus(WeightDelta({"one": part}))
        change = total.changes["one"]
        assert isinstance(change, LowRank)
        assert change.left.shape[1] == 4
        expected = sum(part.left @ part.right for part in parts)
        torch.testing.assert_close(change.left @ change.right, expected, rtol=1e-4, atol=1e-5)


def test_rect_prunes_the_change_of_each_fact_of_rome(neox: LanguageModel, corpus: Corpus) -> None:
    settings = {"prefixes": 0, "target_steps": 5, "decorrelate": False, "depth": 0.5}
    plain = Rome.model_validate(settings)
    name = f"{neox.architecture.mlp_modules(1)[-1]}.weight"
    model = _copy(neox, [name])
    base = neox.network.get_parameter(name).detach()
    for number in (0, 1, 2):
        (step,) = plain.edit(model, _batch(number), Auxiliary(corpus), seed=0)
        change = _dense(step, model)[name]
        weight = model.network.get_parameter(name)
        relative = (change.abs() / (weight.abs() + 1e-8)).flatten()
        # The tenth of the entries that moves most in its own size.
        limit = relative.sort(descending=True).values[-(-len(relative) // 10) - 1]
        with torch.no_grad():
            weight.add_(torch.where(relative.reshape(change.shape) >= limit, change, 0.0))
    expected = model.network.get_parameter(name).detach() - base
    rect = plain.model_copy(update={"keep_share": 0.1})
    (step,) = rect.edit(neox, _batch(0, 1, 2), Auxiliary(corpus), seed=0)
    torch.testing.assert_close(_dense(step, neox)[name], expected, rtol=1e-3, atol=1e-5)
    # Of the sum alone a tenth would be left.
    assert float((_dense(step, neox)[name] != 0).float().mean()) > 0.12


@final
class _Loner(Editor):
    """Makes a memory, and carries nothing on."""

    def steps(
        self, model: LanguageModel, examples: ExampleSet, aux: Auxiliary, *, seed: int
    ) -> Iterator[EpochEdit]:
        (step,) = LookUp().steps(model, examples, aux, seed=seed)
        yield EpochEdit(step.delta)


def test_what_neither_adds_up_nor_is_carried_on_is_refused(
    neox: LanguageModel, corpus: Corpus
) -> None:
    with pytest.raises(EditError, match="neither be added up batch by batch nor carried on"):
        list(_Loner(batches=2).edit(neox, EDITS, Auxiliary(corpus), seed=0))
