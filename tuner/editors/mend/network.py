"""Networks that turn the gradient of an edit into a better change of weights, token by token."""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tuner.editors._locate_then_edit.layer_band_editor import Factors
from tuner.editors._training.rows import generator_for
from tuner.editors.mend.token_gradients import TokenGradients

Shape = tuple[int, int]
"""The numbers of inputs and outputs of a linear map."""

_TINY = 1e-7


@final
class GradientNetwork(nn.Module):
    """Makes the gradients at each token into a better change of some linear maps.

    Maps of equal shape share one network, in which each has scales and offsets of its own; each
    map has a step size. Before anything was observed or trained, the change is one step of plain
    gradient descent.

    Source: Mitchell et al. 2022 (arXiv:2110.11309), §3, with the details of their code, but for
    its sign: the change is added there, and the networks have to learn to turn it round.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], *, rank: int, step_size: float, seed: int
    ) -> None:
        """Make a network for linear maps of the given shapes, by name."""
        super().__init__()
        random = generator_for("gradient network", seed)
        groups: dict[Shape, list[str]] = {}
        for name, shape in shapes.items():
            groups.setdefault(shape, []).append(name)
        self.networks = nn.ModuleDict(
            {
                _key(shape): _SharedNetwork(shape, len(names), rank, random)
                for shape, names in groups.items()
            }
        )
        self.step_sizes = nn.Parameter(torch.full((len(shapes),), step_size))
        self._places = {
            name: (_key(shape), place, index)
            for index, (name, shape) in enumerate(shapes.items())
            for place in (groups[shape].index(name),)
        }

    def observe(self, gradients: Mapping[str, TokenGradients]) -> None:
        """Take tokens into the statistics by which inputs and gradients are normalised."""
        for name, tokens in gradients.items():
            key, _, _ = self._places[name]
            self.networks[key].observe(tokens)  # type: ignore[operator]

    def forward(self, gradients: Mapping[str, TokenGradients]) -> dict[str, Factors]:
        """Return the change of each map, outputs × inputs, of one rank per token."""
        changes: dict[str, Factors] = {}
        for name, tokens in gradients.items():
            key, place, index = self._places[name]
            better: TokenGradients = self.networks[key](tokens, place)
            step = -self.step_sizes[index] * better.gradients.T
            changes[name] = Factors(left=step, right=better.inputs)
        return changes


@final
class _SharedNetwork(nn.Module):
    """What all maps of one shape share: normalisation and two residual blocks."""

    def __init__(self, shape: Shape, places: int, rank: int, random: torch.Generator) -> None:
        super().__init__()
        d_in, d_out = shape
        self.inputs = _Normaliser(d_in)
        self.gradients = _Normaliser(d_out)
        width = d_in + d_out
        self.first = _Block(width, min(rank, width), places, random)
        self.second = _Block(width, min(rank, width), places, random)

    def observe(self, tokens: TokenGradients) -> None:
        self.inputs.observe(tokens.inputs)
        self.gradients.observe(tokens.gradients)

    def forward(self, tokens: TokenGradients, place: int) -> TokenGradients:
        inputs, gradients = self.inputs(tokens.inputs), self.gradients(tokens.gradients)
        joint = self.second(self.first(torch.cat([inputs, gradients], dim=1), place), place)
        better, rest = joint.split([inputs.shape[1], gradients.shape[1]], dim=1)
        return TokenGradients(better, rest)


@final
class _Block(nn.Module):
    """x + max(0, s ⊙ (UVx + b) + o), with s and o of the matrix; the identity at first."""

    def __init__(self, width: int, rank: int, places: int, random: torch.Generator) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(width, rank))
        # Xavier's scale, as in the paper; the published code draws from N(0, 1).
        down = nn.init.xavier_uniform_(torch.empty(rank, width), generator=random)
        self.down = nn.Parameter(down)
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(places, width))
        self.offset = nn.Parameter(torch.zeros(places, width))

    def forward(self, rows: Tensor, place: int) -> Tensor:
        mixed = rows @ self.down.T @ self.up.T + self.bias
        # Not relu, whose gradient at zero, where all of this starts, is zero.
        return rows + (self.scale[place] * mixed + self.offset[place]).clamp(min=0)


@final
class _Normaliser(nn.Module):
    """Subtracts the running mean of each dimension and divides by its running spread."""

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # All of it in buffers, so that trained networks go on as they were.
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, rows: Float[Tensor, "rows width"]) -> None:
        """Take rows into mean and spread (Welford's rule, for many rows at once)."""
        if len(rows) == 0:
            return
        precise = rows.double()
        total = self.count + len(rows)
        mean = precise.mean(dim=0)
        apart = mean - self.mean
        within = (precise - mean).square().sum(dim=0)
        self.squares += within + apart.square() * self.count * len(rows) / total
        self.mean += apart * len(rows) / total
        self.count.copy_(total)

    def forward(self, rows: Tensor) -> Tensor:
        # One row has no spread.
        if self.count < 2:
            return rows
        spread = (self.squares / (self.count - 1)).sqrt()
        return ((rows - self.mean) / (spread + _TINY)).to(rows.dtype)


def _key(shape: Shape) -> str:
    # The names of modules hold dots, which PyTorch does not allow here.
    return f"{shape[0]}x{shape[1]}"
