"""Training of a gradient network on other edits, with rows in and out of their scope."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar, final

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from tuner.editing.corpus import Corpus
from tuner.editing.likelihood import (
    EncodedExample,
    MeanOver,
    encode_examples,
    shares_of,
    training_losses,
)
from tuner.editing.model import LanguageModel
from tuner.editing.prompts import Prompts
from tuner.editing.task import LossKind, Split
from tuner.editors._locate_then_edit.layer_band_editor import Factors
from tuner.editors._training.amortised import trained_once
from tuner.editors._training.loop import trainable_twin
from tuner.editors._training.training_edits import (
    TrainingEdit,
    check_training,
    hold_out,
    split_hash,
    training_edits,
)
from tuner.editors.mend.network import GradientNetwork, Shape
from tuner.editors.mend.token_gradients import TokenGradients, moved_maps, token_gradients
from tuner.errors import EditError
from tuner.files.cache import Cache, Key


@final
@dataclass(frozen=True)
class GradientSettings:
    """All that a gradient network depends on beyond the model and the edits it is trained on."""

    layers: int
    """How many layers are edited, counted from the last."""
    rank: int
    step_size: float
    learning_rate: float
    step_size_rate: float
    edit_weight: float
    general_weight: float
    edits_per_step: int
    accumulation: int
    clip: float
    training_steps: int
    patience: int
    check_every: int
    held_out: float
    seed: int
    mean_over: MeanOver = "tokens"


def edited_maps(model: LanguageModel, layers: int) -> dict[str, Shape]:
    """Return the MLP maps of the last layers, each with its numbers of inputs and outputs."""
    shapes = {}
    for layer in range(max(0, model.layer_count - layers), model.layer_count):
        for name in model.architecture.mlp_modules(layer):
            rows, columns = model.network.get_submodule(name).get_parameter("weight").shape
            transposed = model.architecture.transposed
            shapes[name] = (rows, columns) if transposed else (columns, rows)
    return shapes


def gradient_network(
    model: LanguageModel,
    training: Split,
    general: Corpus,
    settings: GradientSettings,
    cache: Cache | None,
) -> GradientNetwork:
    """Return a gradient network for the model, trained or as the cache holds it.

    Raises:
        ConfigError: the split does not hold what is needed.
        EditError: the training diverged or ran out of memory.
    """
    check_training(training, without_outside=settings.general_weight > 0)
    network = new_network(model, settings)
    key = _key(model, training, general, settings)

    def make() -> dict[str, Tensor]:
        _MendTraining(model, training, general, settings).run(network)
        return {name: value.cpu().contiguous() for name, value in network.state_dict().items()}

    network.load_state_dict(trained_once(cache, "gradient_network", key, make))
    return network


def new_network(model: LanguageModel, settings: GradientSettings) -> GradientNetwork:
    """Return an untrained gradient network: the identity."""
    network = GradientNetwork(
        edited_maps(model, settings.layers),
        rank=settings.rank,
        step_size=settings.step_size,
        seed=settings.seed,
    )
    return network.to(model.device)


def held_out_loss(
    model: LanguageModel,
    training: Split,
    general: Corpus,
    settings: GradientSettings,
    network: GradientNetwork,
) -> float:
    """Return the mean loss of a gradient network on the edits that are held out of its training.

    Raises:
        ConfigError: the split does not hold what is needed.
    """
    check_training(training, without_outside=settings.general_weight > 0)
    return _MendTraining(model, training, general, settings).held_out_loss(network)


@final
@dataclass(frozen=True)
class _Encoded:
    """An edit with the rows of its record, as tokens."""

    canonical: EncodedExample
    in_scope: tuple[EncodedExample, ...]
    out_of_scope: tuple[EncodedExample, ...]

    @classmethod
    def of(cls, model: LanguageModel, edit: TrainingEdit) -> "_Encoded":
        rows = encode_examples(model, (*edit.inside, *edit.out_of_scope))
        first_outside = len(edit.inside)
        return cls(rows[0], tuple(rows[1:first_outside]), tuple(rows[first_outside:]))


class _MendTraining:
    """The edits of a split, and the descent of the loss that they give.

    Source: Mitchell et al. 2022 (arXiv:2110.11309), §3.2, and their code: L is `edit_weight`
    times the loss of a row in scope after the edit plus KL(before‖after) on a row out of it; u
    and δ are constants, so there are no derivatives of second order. Losses are means over the
    tokens of all targets, by `mean_over` over examples. `general_weight` times that KL on a block
    of general text is ours.
    """

    def __init__(
        self,
        model: LanguageModel,
        training: Split,
        general: Corpus,
        settings: GradientSettings,
    ) -> None:
        self.settings = settings
        self.general = general.blocks.tolist() if settings.general_weight else []
        self.loss: LossKind = training.canonical.loss
        self.pad_id = model.end_id
        # In half precision small gradients vanish and small changes are rounded away.
        self.base = trainable_twin(model, ())
        self.maps = tuple(edited_maps(model, settings.layers))
        self.random = torch.Generator().manual_seed(settings.seed)
        edits = training_edits(training)
        learned, held_out = hold_out(edits, settings.held_out, self.random)
        self.learned = [_Encoded.of(model, edit) for edit in learned]
        self.held_out = [_Encoded.of(model, edit) for edit in held_out]
        self.size = min(settings.edits_per_step, len(self.learned))

    @torch.enable_grad()  # the consumer may pull steps from within no_grad
    def run(self, network: GradientNetwork) -> None:
        """Train `network`, and leave it as it was best on the edits held out.

        Raises:
            EditError: the training diverged or ran out of memory.
        """
        settings = self.settings
        nets = list(network.networks.parameters())
        optimiser = torch.optim.Adam(
            [
                {"params": nets, "lr": settings.learning_rate},
                {"params": [network.step_sizes], "lr": settings.step_size_rate},
            ]
        )
        groups = self._groups()
        best, best_step = self.held_out_loss(network), 0
        kept = copy.deepcopy(network.state_dict())
        for step in range(1, settings.training_steps + 1):
            try:
                optimiser.zero_grad(set_to_none=True)
                for _ in range(settings.accumulation):
                    group = next(groups)
                    gradients = self._gradients(group)
                    network.observe(gradients)
                    value = self._value(network(gradients), group, self.random)
                    (value / settings.accumulation).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_([*nets, network.step_sizes], settings.clip)
                optimiser.step()
            except torch.OutOfMemoryError:
                raise EditError(
                    "Memory ran out while the gradient network was trained; lower edits_per_step, "
                    "layers or rank, or use a larger device."
                ) from None
            if step % settings.check_every and step != settings.training_steps:
                continue
            now = self.held_out_loss(network)
            if now < best:
                best, best_step = now, step
                kept = copy.deepcopy(network.state_dict())
            elif step - best_step >= settings.patience:
                break
        network.load_state_dict(kept)
        network.zero_grad(set_to_none=True)

    @torch.no_grad()
    def held_out_loss(self, network: GradientNetwork) -> float:
        """Return the mean of L over the edits held out, always with the same rows.

        As many edits are made at once as in training; others fill up what is missing, and are not
        judged.
        """
        random = torch.Generator().manual_seed(self.settings.seed)
        total = 0.0
        for start in range(0, len(self.held_out), self.size):
            group = self.held_out[start : start + self.size]
            gradients = self._gradients([*group, *self.learned[: self.size - len(group)]])
            total += float(self._value(network(gradients), group, random)) * len(group)
        return total / len(self.held_out)

    def _groups(self) -> Iterator[list[_Encoded]]:
        """Yield the edits of one training step after another, without end."""
        while True:
            order = torch.randperm(len(self.learned), generator=self.random).tolist()
            for start in range(0, len(order) - self.size + 1, self.size):
                yield [self.learned[index] for index in order[start : start + self.size]]

    def _gradients(self, edits: Sequence[_Encoded]) -> dict[str, TokenGradients]:
        canonical = [edit.canonical for edit in edits]
        return token_gradients(
            self.base, self.maps, self.loss, canonical, self.pad_id, self.settings.mean_over
        )

    def _value(
        self,
        changes: Mapping[str, Factors],
        edits: Sequence[_Encoded],
        random: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Return L of several edits made at once, with one row of each kind for each edit."""
        inside = [_draw(edit.in_scope, random) for edit in edits]
        outside = [
            _draw(edit.out_of_scope, random).target.ids for edit in edits if edit.out_of_scope
        ]
        with moved_maps(self.base, changes):
            losses = training_losses(self.base, self.loss, inside, self.pad_id)
        shares = shares_of(inside, self.settings.mean_over).to(losses.device)
        value = self.settings.edit_weight * (losses * shares).mean()
        if outside:
            value = value + self._divergence(changes, outside)
        if self.general:
            block = _draw(self.general, random)
            value = value + self.settings.general_weight * self._divergence(changes, [block])
        if not torch.isfinite(value):
            raise EditError(
                f"The loss of the gradient network became {value.item()}; lower learning_rate, "
                "step_size or step_size_rate."
            )
        return value

    def _divergence(
        self, changes: Mapping[str, Factors], rows: Sequence[Sequence[int]]
    ) -> Float[Tensor, ""]:
        """Return KL(before‖after) of the next token, averaged over the tokens of some rows."""
        prompts = Prompts.of(rows, self.base.device)
        with torch.no_grad():
            before = _next_tokens(self.base, prompts)
        with moved_maps(self.base, changes):
            after = _next_tokens(self.base, prompts)
        return F.kl_div(after, before, log_target=True, reduction="sum") / len(before)


def _next_tokens(network: PreTrainedModel, prompts: Prompts) -> Float[Tensor, "tokens vocabulary"]:
    """Return the log-probabilities after each token that is not padding."""
    mask = prompts.mask.long()
    logits = network(input_ids=prompts.ids, attention_mask=mask, use_cache=False).logits
    return F.log_softmax(logits[prompts.mask].float(), dim=-1)


_Row = TypeVar("_Row")


def _draw(rows: Sequence[_Row], random: torch.Generator) -> _Row:
    return rows[int(torch.randint(len(rows), (1,), generator=random))]


def _key(model: LanguageModel, training: Split, general: Corpus, settings: GradientSettings) -> Key:
    return {
        "model": model.fingerprint,
        "training": split_hash(training),
        "general": general.hash if settings.general_weight else None,
        **asdict(settings),
        "device": model.device_name,
        "attention": model.kernel,
        "version": 2,  # of the network and its training
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
