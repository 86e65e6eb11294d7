"""What every delta keeps, and what every memory keeps, as test classes to subclass in pytest.

A subclass gives two fixtures, `model` and `delta`:

    class TestMyDelta(DeltaContract):
        @pytest.fixture
        def model(self):
            return tuner.load_model("builtin:neox")

        @pytest.fixture
        def delta(self, model):
            return MyDelta(...)
"""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tuner.bundle.bundle import Bundle, StoredBundle
from tuner.bundle.export import export
from tuner.deltas.memory.memory import MemoryDelta
from tuner.deltas.registry import check_storable
from tuner.editing.companions import Companions, Surroundings
from tuner.editing.delta import AdditiveDelta, Delta, check_finite
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts, prompts_end_at
from tuner.errors import BaseMismatch, ConfigError
from tuner.evaluation.deviation.memories import MemoryDeviation
from tuner.evaluation.identity import delta_hash
from tuner.testing.bundles import bundle_of
from tuner.testing.tiny_task import tiny_corpus

_NEW_TOKENS = 4


class DeltaContract:
    """Tests that a change of a model keeps what all of them must keep.

    The delta must change what the model says of `text`, at the end of it.
    """

    text: ClassVar[str] = "The capital of Togo is"
    tolerance: ClassVar[float] = 1e-6
    """How far logits of a restored delta may be from its own."""

    @pytest.fixture
    def delta(self) -> Delta:
        """Return the delta to test: a subclass says which."""
        raise NotImplementedError("A subclass of DeltaContract gives the fixture `delta`.")

    def test_a_bundle_can_name_its_kind(self, delta: Delta) -> None:
        assert check_storable(delta) is delta

    def test_applied_edits_the_network_and_leaves_it_as_it_was(
        self, delta: Delta, model: LanguageModel
    ) -> None:
        before = _says(model, self.text)
        with model.edited(delta):
            inside = _says(model, self.text)
        assert not torch.equal(inside, before)
        assert torch.equal(_says(model, self.text), before)
        model.check_unchanged()

    def test_an_error_inside_leaves_the_network_as_it_was(
        self, delta: Delta, model: LanguageModel
    ) -> None:
        before = _says(model, self.text)
        with pytest.raises(KeyboardInterrupt), model.edited(delta):
            raise KeyboardInterrupt
        assert torch.equal(_says(model, self.text), before)
        assert not _hooks(model.network)
        assert "generate" not in vars(model.network)
        model.check_unchanged()

    def test_scaled_to_nothing_it_changes_nothing(self, delta: Delta, model: LanguageModel) -> None:
        before = _says(model, self.text)
        with model.edited(delta.scaled(0.0)):
            assert torch.equal(_says(model, self.text), before)

    def test_scaled_by_one_it_is_the_same(self, delta: Delta, model: LanguageModel) -> None:
        with model.edited(delta):
            before = _says(model, self.text)
        with model.edited(delta.scaled(1.0)):
            assert torch.equal(_says(model, self.text), before)

    def test_scaling_returns_another_delta(self, delta: Delta) -> None:
        before = delta_hash(delta)
        half = delta.scaled(0.5)
        assert type(half) is type(delta)
        assert delta_hash(delta) == before
        assert delta_hash(half) != before

    def test_its_tensors_can_be_stored(self, delta: Delta) -> None:
        check_finite(delta)
        for name, tensor in delta.tensors().items():
            assert tensor.device.type == "cpu", name
            assert tensor.is_contiguous(), name
            assert not tensor.requires_grad, name

    def test_tensors_and_state_make_it_again(self, delta: Delta, model: LanguageModel) -> None:
        kind = type(delta)
        state = delta.state
        if kind.state_type is None:
            assert state is None
        else:
            assert isinstance(state, kind.state_type)
            state = kind.state_type.model_validate_json(state.model_dump_json())
            assert state == delta.state
        surroundings = Surroundings(Companions(str(model.device)), lambda: model.tokenizer)
        again = kind.restore(state, delta.tensors(), surroundings)
        assert delta_hash(again) == delta_hash(delta)
        with model.edited(delta):
            before = _says(model, self.text)
        with model.edited(again):
            torch.testing.assert_close(_says(model, self.text), before, rtol=0, atol=self.tolerance)

    def test_a_bundle_keeps_it(self, delta: Delta, model: LanguageModel, tmp_path: Path) -> None:
        stored = StoredBundle.load(bundle_of(model, delta).save(tmp_path / "bundle"))
        assert stored.manifest.state == delta.state
        assert stored.delta_hash == delta_hash(delta)
        kept = delta.tensors()
        assert stored.tensors.keys() == kept.keys()
        assert all(torch.equal(stored.tensors[name], tensor) for name, tensor in kept.items())

    def test_a_bundle_is_copied_without_the_models_that_it_names(
        self, delta: Delta, model: LanguageModel, tmp_path: Path
    ) -> None:
        bundle = bundle_of(model, delta)
        away = bundle.manifest.model_copy(update={"base": str(tmp_path / "nowhere")})
        folder = Bundle(delta, away).save(tmp_path / "bundle")
        copy = export(StoredBundle.load(folder), tmp_path / "copy", format="delta")
        for name in ("delta.json", "delta.safetensors"):
            assert (copy.folder / name).read_bytes() == (folder / name).read_bytes()

    def test_another_base_is_refused(self, delta: Delta, model: LanguageModel) -> None:
        manifest = bundle_of(model, delta).manifest
        other = manifest.model_copy(update={"base_fingerprint": "0" * 64})
        with pytest.raises(BaseMismatch, match="was made from"):
            Bundle(delta, other).check_base(model)

    def test_it_fits_the_base_that_it_was_made_for(
        self, delta: Delta, model: LanguageModel
    ) -> None:
        bundle_of(model, delta).check_base(model)

    def test_text_that_it_cannot_change_stays_as_it_is(
        self, delta: Delta, model: LanguageModel
    ) -> None:
        blocks = _blocks(model)
        can_change = delta.can_change(blocks)
        assert can_change.dtype is torch.bool
        assert can_change.shape == (len(blocks),)
        rest = blocks[~can_change].to(model.device)
        if len(rest):
            before = _logits(model, rest)
            with model.edited(delta):
                # The last token of a block predicts nothing.
                assert torch.equal(_logits(model, rest)[:, :-1], before[:, :-1])

    def test_it_is_described_on_one_line(self, delta: Delta) -> None:
        described = delta.describe()
        assert described.strip() == described != ""
        assert "\n" not in described


class AdditiveDeltaContract(DeltaContract):
    """Tests that a change which is written into weights, and added to others, keeps that too."""

    def test_written_for_good_it_says_the_same(self, delta: Delta, model: LanguageModel) -> None:
        assert isinstance(delta, AdditiveDelta)
        with model.edited(delta):
            before = _says(model, self.text)
        assert torch.equal(_says(model.after(delta), self.text), before)
        model.check_unchanged()

    def test_added_to_itself_it_is_twice_as_large(self, delta: Delta, model: LanguageModel) -> None:
        assert isinstance(delta, AdditiveDelta)
        with model.edited(delta.plus(delta)):
            twice = _says(model, self.text)
        with model.edited(delta.scaled(2.0)):
            torch.testing.assert_close(_says(model, self.text), twice, rtol=1e-4, atol=1e-4)


class MemoryContract(DeltaContract):
    """Tests that stored edits with a router keep what all memories must keep.

    The delta holds one edit, of the prompt `text`; the prompt `other` is not in its scope.
    """

    other: ClassVar[str] = "a big town and a city"
    continuation: ClassVar[str] = " Port Louis and"

    @pytest.fixture
    def memory(self, delta: Delta) -> MemoryDelta:
        """Return the delta, which is a memory."""
        assert isinstance(delta, MemoryDelta)
        return delta

    def test_the_edited_prompt_is_in_scope_and_another_is_not(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        assert _routes(model, memory, self.text, self.other).tolist() == [True, False]

    def test_the_beginnings_of_a_text_are_routed_as_prompts_are(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        texts, ends = _blocks(model)[:8].to(model.device), (4, 9, 16)
        routed = memory.routes_before(model.network, texts, ends)
        for end, routes in zip(ends, routed, strict=True):
            alone = memory.route(model.network, Prompts.whole(texts[:, :end]))
            assert torch.equal(routes.entries, alone.entries)
            assert torch.allclose(routes.needed, alone.needed, rtol=1e-3)

    def test_only_what_is_in_scope_changes_and_only_from_the_end_of_the_prompt_on(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        edited, other = model.encode_prompt(self.text), model.encode_prompt(self.other)
        more = model.encode(self.continuation)
        for prompt, changes in ((edited, True), (other, False)):
            ids = torch.tensor([[*prompt, *more]], device=model.device)
            before = _logits(model, ids, len(prompt))
            with model.edited(memory):
                after = _logits(model, ids, len(prompt))
            last = len(prompt) - 1
            # Memories inside the model may act on the prompt; what it says there is never judged.
            assert torch.equal(before[:, last:], after[:, last:]) != changes

    def test_padding_batches_and_caches_change_no_token(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        plain = [*_generate(model, self.text), *_generate(model, self.other)]
        with model.edited(memory):
            single = [*_generate(model, self.text), *_generate(model, self.other)]
            together = _generate(model, self.text, self.other)
            without_cache = _generate(model, self.text, self.other, use_cache=False)
        assert single == together == without_cache
        assert single[1] == plain[1]
        assert _generate(model, self.text) == plain[:1]

    def test_beams_are_the_same_with_and_without_a_cache(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        prompts = (self.text, self.other)
        with model.edited(memory):
            cached = _generate(model, *prompts, num_beams=3)
            assert cached == _generate(model, *prompts, num_beams=3, use_cache=False)

    def test_reading_a_text_at_once_is_the_same_as_going_on_from_a_cache(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        prompt, more = model.encode_prompt(self.text), model.encode(self.continuation)
        ids = torch.tensor([[*prompt, *more]], device=model.device)
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

    def test_a_cache_without_its_prompt_is_refused(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        ids = torch.tensor([model.encode_prompt(self.text)], device=model.device)
        with torch.no_grad(), model.edited(memory):
            cache = model.network(input_ids=ids, use_cache=True).past_key_values
            with pytest.raises(ConfigError, match="must see a prompt as a whole"):
                model.network(input_ids=ids[:, :1], past_key_values=cache)

    def test_strength_widens_scopes(self, memory: MemoryDelta, model: LanguageModel) -> None:
        rows = Prompts.of([model.encode_prompt(self.other)], model.device)
        needed = memory.route(model.network, rows).needed
        if torch.isinf(needed).all():
            pytest.skip("no strength reaches this prompt")
        wide = memory.scaled(float(needed) * 1.01 / memory.strength)
        assert _routes(model, wide, self.other).tolist() == [True]
        narrow = memory.scaled(float(needed) * 0.99 / memory.strength)
        assert _routes(model, narrow, self.other).tolist() == [False]

    def test_strengths_of_one_memory_share_their_routes(self, memory: MemoryDelta) -> None:
        assert memory.routes_as(memory.scaled(0.5))

    def test_text_outside_all_scopes_changes_by_nothing(
        self, memory: MemoryDelta, model: LanguageModel
    ) -> None:
        blocks = _blocks(model)
        reading = MemoryDeviation(model, blocks, batch=4)
        rows = range(6)
        rises = reading.changes(memory, rows).losses
        assert rises[~reading.changeable(memory, rows)].abs().sum() == 0
        wide = memory.scaled(1e9)
        if reading.changeable(wide, rows).any():
            assert (reading.changes(wide, rows).losses != 0).any()


def _blocks(model: LanguageModel) -> Int[Tensor, "blocks length"]:
    """Return random tokens in place of general text."""
    return tiny_corpus().blocks % len(model.tokenizer)


def _says(model: LanguageModel, text: str) -> Float[Tensor, "1 vocabulary"]:
    """Return the logits at the end of a prompt."""
    ids = torch.tensor([model.encode_prompt(text)], device=model.device)
    return _logits(model, ids, ids.shape[1])[:, -1]


def _logits(
    model: LanguageModel, ids: Int[Tensor, "rows length"], end: int | None = None
) -> Float[Tensor, "rows length vocabulary"]:
    with torch.no_grad(), prompts_end_at(ids.shape[1] if end is None else end):
        logits: Tensor = model.network(input_ids=ids, use_cache=False).logits
    return logits


def _generate(model: LanguageModel, *prompts: str, **settings: object) -> list[list[int]]:
    """Return what follows each prompt, padded on the left as one batch."""
    rows = [model.encode_prompt(prompt) for prompt in prompts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([[model.end_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    said: Tensor = model.network.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        pad_token_id=model.end_id,
        **settings,
    )
    new: list[list[int]] = said[:, width:].tolist()
    return new


def _routes(model: LanguageModel, memory: MemoryDelta, *prompts: str) -> Tensor:
    rows = Prompts.of([model.encode_prompt(prompt) for prompt in prompts], model.device)
    return memory.route(model.network, rows).inside(memory.strength)


def _hooks(network: nn.Module) -> list[str]:
    """Return the modules that still have a hook on what they compute."""
    return [
        name
        for name, module in network.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    ]
