"""Additive vectors for single senses: found by token, whatever order they are stored in."""

import torch

from tuner.backpack import SenseOffsets


def test_each_place_gets_the_vectors_of_its_token() -> None:
    # Neither tokens nor senses in order, and token 9 is not read at all.
    pairs = torch.tensor([[7, 2], [3, 0], [9, 1], [7, 0], [3, 2]])
    vectors = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    offsets = SenseOffsets(pairs, vectors)
    ids = torch.tensor([[3, 5, 7], [7, 0, 3]])
    expected = torch.zeros(2, 3, 3, 4)
    for (token, sense), vector in zip(pairs.tolist(), vectors, strict=True):
        expected[..., sense, :] += (ids == token)[..., None] * vector
    assert torch.equal(offsets.at(ids, senses=3), expected)
    assert torch.equal(offsets.at(ids.flatten(), senses=3), expected.flatten(0, 1))
    assert offsets.touched(ids).tolist() == [[True, False, True], [True, False, True]]


def test_those_beneath_are_added() -> None:
    random = torch.Generator().manual_seed(0)
    below = SenseOffsets(torch.tensor([[5, 1], [3, 0]]), torch.randn(2, 4, generator=random))
    above = SenseOffsets(
        torch.tensor([[3, 0], [1, 1]]), torch.randn(2, 4, generator=random), beneath=below
    )
    ids = torch.tensor([1, 2, 3, 5])
    alone = SenseOffsets(above.pairs, above.vectors.detach())
    assert torch.equal(above.at(ids, 2), alone.at(ids, 2) + below.at(ids, 2))
    assert torch.equal(above.at(ids, 2)[2, 0], above.vectors[0] + below.vectors[1])
    assert above.touched(ids).tolist() == [True, False, True, True]


def test_nothing_to_add_is_zero() -> None:
    none = SenseOffsets(torch.empty(0, 2, dtype=torch.long), torch.empty(0, 4))
    some = SenseOffsets(torch.tensor([[3, 0]]), torch.ones(1, 4))
    ids, no_ids = torch.tensor([[1, 2]]), torch.empty(2, 0, dtype=torch.long)
    for offsets in (none, some):
        assert torch.equal(offsets.at(ids, 2), torch.zeros(1, 2, 2, 4))
        assert offsets.at(no_ids, 2).shape == (2, 0, 2, 4)
        assert not offsets.touched(ids).any()


def test_only_the_vectors_learn() -> None:
    offsets = SenseOffsets(torch.tensor([[3, 0], [4, 1]]), torch.zeros(2, 4))
    offsets.at(torch.tensor([3, 3, 1]), 2).sum().backward()
    assert torch.equal(offsets.vectors.grad, torch.tensor([[2.0] * 4, [0.0] * 4]))
    assert [name for name, _ in offsets.named_parameters()] == ["vectors"]
