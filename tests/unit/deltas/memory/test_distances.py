"""Distances of states are exact where it matters: at 0."""

import torch

from tuner.deltas.memory.distances import distances_between


def test_a_state_is_at_no_distance_from_itself_however_large_it_is_and_however_many_there_are() -> (
    None
):
    states = 1000 * torch.randn(80, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(distances_between(states, states).diagonal(), torch.zeros(80))


def test_distances_are_euclidean() -> None:
    found = distances_between(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    assert torch.equal(found, torch.tensor([[5.0, 2.0]]))
