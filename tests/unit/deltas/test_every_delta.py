"""What holds for every change that is not a memory, and what the contract does not let pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from tests.support.sense_edits import random_senses
from tuner.deltas.ensemble.ensemble_delta import EnsembleDelta
from tuner.deltas.ensemble.log_ratio import LogRatio
from tuner.deltas.senses import SenseDelta
from tuner.editing.companions import Surroundings
from tuner.editing.delta import Delta, Dense, LowRank, Rows, WeightDelta
from tuner.editing.model import LanguageModel, load_model
from tuner.testing.deltas import AdditiveDeltaContract, DeltaContract

MATRIX = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"


class TestWeights(AdditiveDeltaContract):
    @pytest.fixture(params=["dense", "low rank", "rows"])
    def delta(self, request: pytest.FixtureRequest, model: LanguageModel) -> Delta:
        draw = torch.Generator().manual_seed(0)
        changes = {
            "dense": (MATRIX, Dense(torch.randn(32, 64, generator=draw))),
            "low rank": (
                MATRIX,
                LowRank(torch.randn(32, 2, generator=draw), torch.randn(2, 64, generator=draw)),
            ),
            "rows": ("gpt_neox.embed_in.weight", Rows(torch.arange(300), torch.ones(300, 32))),
        }
        return WeightDelta(dict([changes[request.param]]))

    @pytest.fixture
    def model(self, neox: LanguageModel) -> LanguageModel:
        return neox


class TestSenses(AdditiveDeltaContract):
    @pytest.fixture
    def delta(self, model: LanguageModel) -> SenseDelta:
        return random_senses(model, sorted(set(model.encode(self.text))))

    @pytest.fixture
    def model(self, backpack: LanguageModel) -> LanguageModel:
        return backpack


class TestEnsemble(DeltaContract):
    @pytest.fixture
    def delta(self, small: str) -> EnsembleDelta:
        model = load_model(small, device="cpu")
        change = random_senses(model, sorted(set(model.encode(self.text))))
        return EnsembleDelta(LogRatio(model, change), 0.5)

    @pytest.fixture
    def model(self, neox: LanguageModel) -> LanguageModel:
        return neox


class ShiftState(BaseModel):
    size: float


@dataclass(frozen=True)
class Shift(Delta):
    """A wrong delta, as an outsider might write it: its hook stays."""

    size: float
    state_type: ClassVar[type[BaseModel]] = ShiftState

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        def add(module: nn.Module, inputs: object, output: object) -> None:
            output.logits[..., 0] += self.size  # type: ignore[attr-defined]

        network.register_forward_hook(add)
        yield

    def scaled(self, alpha: float) -> Self:
        return replace(self, size=self.size * alpha)

    def tensors(self) -> dict[str, Tensor]:
        return {"size": torch.tensor(1.0)}

    @property
    def state(self) -> ShiftState:
        return ShiftState(size=self.size)

    @classmethod
    def restore(
        cls, state: BaseModel | None, tensors: Mapping[str, Tensor], surroundings: Surroundings
    ) -> Self:
        return cls(2.0)  # what was stored does not matter to it

    def describe(self) -> str:
        return "a shift"


def test_the_contract_catches_a_hook_that_stays_and_a_state_that_is_lost(
    neox: LanguageModel, tmp_path: Path
) -> None:
    contract, shift = DeltaContract(), Shift(1.0)
    contract.test_a_bundle_keeps_it(shift, neox, tmp_path)
    with pytest.raises(AssertionError):
        contract.test_tensors_and_state_make_it_again(shift, neox)
    with pytest.raises(AssertionError):
        contract.test_applied_edits_the_network_and_leaves_it_as_it_was(shift, neox)
