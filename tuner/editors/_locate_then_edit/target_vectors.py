"""Optimise the target value v* at the subject's last token (ROME §3.1)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, Int
from torch import Tensor

from tuner.editing.activations import changed_output, recorded
from tuner.editing.likelihood import combine_losses, token_losses
from tuner.editing.model import LanguageModel
from tuner.editing.subject import LocatedPrompt, locate_subject, right_padded
from tuner.editing.task import Example, ExampleSet, LossKind
from tuner.errors import EditError
from tuner.files.cache import Cache, Key

# Rows per forward pass, so that memory stays bounded whatever the number of facts.
_ROWS = 256
_BETAS = (0.9, 0.999)
_TINY = 1e-8


@final
@dataclass(frozen=True)
class TargetSettings:
    """How target vectors are sought: all that they depend on beyond model and examples."""

    layer: int
    site: Literal["layer", "mlp"]
    """Where the vector is added: the output of the layer (MEMIT) or of its MLP (ROME)."""
    prefixes: tuple[str, ...]
    """Contexts in which the target should follow, beside no context."""
    steps: int
    learning_rate: float
    clamp: float
    """The greatest norm of the change, in norms of what stood there before."""
    kl_weight: float
    weight_decay: float


@final
@dataclass(frozen=True)
class _Rows:
    """Prompts of several facts, and what follows them, as one batch."""

    prompts: tuple[LocatedPrompt, ...]
    facts: tuple[int, ...]
    """The fact that each belongs to."""


def target_vectors(
    model: LanguageModel, examples: ExampleSet, settings: TargetSettings, cache: Cache | None
) -> Float[Tensor, "facts width"]:
    """Return, in float64, the vector v* = v + δ that each example needs at its subject's token.

    δ starts at zero and takes `steps` − 1 steps of Adam down the mean over contexts of the task's
    training loss, plus `kl_weight` · KL(edited‖base) of the next token after the subject in
    "{subject} is a", plus `weight_decay` · ‖δ‖/‖v‖²; after each step ‖δ‖ is cut to `clamp`·‖v‖. A
    fact whose total is small enough stops.

    Source: Meng et al. 2022 (arXiv:2202.05262), §3.1, and 2023 (arXiv:2210.07229), §4.2, with the
    details of their code; the four loss kinds from Hewitt et al. 2024 (arXiv:2402.06155).

    Raises:
        EditError: a subject does not stand in its prompt, or a loss became NaN or infinite.
    """
    key = _key(model, examples, settings)
    saved = cache.load("target_vectors", key) if cache else None
    if saved is not None:
        return saved["targets"].to(model.device)
    # Facts do not see one another, so they share passes; the groups depend on nothing else, and
    # the same examples always give the same bits.
    size = max(1, _ROWS // (len(settings.prefixes) + 1))
    targets = torch.cat(
        [
            _Search(model, examples.loss, examples.rows[start : start + size], settings).run()
            for start in range(0, len(examples), size)
        ]
    )
    if cache:
        cache.save("target_vectors", key, {"targets": targets.cpu().contiguous()})
    return targets


class _Search:
    """The search for the vectors of one group of facts."""

    def __init__(
        self,
        model: LanguageModel,
        loss: LossKind,
        rows: Sequence[Example],
        settings: TargetSettings,
    ) -> None:
        self.model = model
        self.loss = loss
        self.settings = settings
        self.count = len(rows)
        path = (
            model.architecture.layer_module(settings.layer)
            if settings.site == "layer"
            else model.architecture.mlp_modules(settings.layer)[-1]
        )
        self.site = model.network.get_submodule(path)
        self.targets = self._with(rows, [row.target for row in rows])
        contrasts = [row.contrast or "" for row in rows]
        self.contrasts = self._with(rows, contrasts) if loss.needs_contrast else None
        self.subjects = _Rows(
            tuple(_about_subject(model, row) for row in rows), tuple(range(len(rows)))
        )
        clean = [
            locate_subject(model, row.prompt, row.subject, target=row.target).prompt for row in rows
        ]
        self.start = self._activations(clean)
        with torch.no_grad():
            self.base_subjects = self._next_tokens(None)

    def run(self) -> Tensor:
        norms = self.start.norm(dim=1, keepdim=True).clamp_min(_TINY)
        delta = torch.zeros_like(self.start, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=self.settings.learning_rate, betas=_BETAS)
        active = torch.ones(self.count, dtype=torch.bool, device=delta.device)
        # Losses that can fall for ever have no natural end.
        enough = 0.05 if self.loss in (LossKind.LIKELIHOOD, LossKind.BALANCE) else -50.0
        for step in range(self.settings.steps):
            with torch.enable_grad():  # the consumer may ask from within no_grad
                total = self._totals(delta, norms)
                whole = total.sum()
            if not torch.isfinite(total).all():
                raise EditError(
                    "The loss of a target vector became NaN or infinite; lower learning_rate."
                )
            active = active & (total.detach() >= enough)
            if step == self.settings.steps - 1 or not active.any():
                break
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(whole, inputs=[delta])
            before = delta.detach().clone()
            optimiser.step()
            with torch.no_grad():
                limit = self.settings.clamp * norms
                sizes = delta.norm(dim=1, keepdim=True).clamp_min(_TINY)
                delta.mul_(torch.minimum(limit / sizes, torch.ones_like(sizes)))
                delta[~active] = before[~active]
        return (self.start + delta.detach()).double()

    def _with(self, rows: Sequence[Example], continuations: Sequence[str]) -> _Rows:
        prompts = tuple(
            locate_subject(self.model, row.prompt, row.subject, prefix=prefix, target=text)
            for row, text in zip(rows, continuations, strict=True)
            for prefix in ("", *self.settings.prefixes)
        )
        contexts = len(self.settings.prefixes) + 1
        return _Rows(prompts, tuple(number // contexts for number in range(len(prompts))))

    def _totals(self, delta: Tensor, norms: Tensor) -> Float[Tensor, " facts"]:
        target = self._losses(delta, self.targets)
        contrast = None if self.contrasts is None else self._losses(delta, self.contrasts)
        per_row = combine_losses(self.loss, target, contrast)
        facts = torch.tensor(self.targets.facts, device=per_row.device)
        total = torch.zeros(self.count, device=per_row.device, dtype=per_row.dtype)
        total = total.index_add(0, facts, per_row) / (len(self.settings.prefixes) + 1)
        if self.settings.kl_weight:
            edited = self._next_tokens(delta)
            divergence = F.kl_div(
                self.base_subjects, edited, log_target=True, reduction="none"
            ).sum(dim=1)
            total = total + self.settings.kl_weight * divergence
        if self.settings.weight_decay:
            # The norm has no derivative at zero, where δ starts.
            size = (delta.square().sum(dim=1) + _TINY**2).sqrt()
            total = total + self.settings.weight_decay * size / norms[:, 0].square()
        return total

    def _losses(self, delta: Tensor, continued: _Rows) -> Float[Tensor, " rows"]:
        """Return each row's mean loss per token of its continuation."""
        ids, logits = self._forward(delta, continued)
        judged = torch.zeros_like(ids, dtype=torch.bool)
        for row, prompt in enumerate(continued.prompts):
            judged[row, prompt.start : len(prompt.ids)] = True
        losses = token_losses(logits[:, :-1], ids[:, 1:])
        kept = judged[:, 1:]
        return torch.where(kept, losses, 0.0).sum(dim=1) / kept.sum(dim=1)

    def _next_tokens(self, delta: Tensor | None) -> Float[Tensor, "facts vocabulary"]:
        """Return the log-probabilities of the token after each subject."""
        _, logits = self._forward(delta, self.subjects)
        rows = torch.arange(len(logits), device=logits.device)
        at = torch.tensor([p.position for p in self.subjects.prompts], device=logits.device)
        return F.log_softmax(logits[rows, at].float(), dim=-1)

    def _forward(
        self, delta: Tensor | None, rows: _Rows
    ) -> tuple[Int[Tensor, "rows length"], Float[Tensor, "rows length vocabulary"]]:
        ids, mask, positions = right_padded(rows.prompts, self.model.end_id, self.model.device)
        facts = torch.tensor(rows.facts, device=ids.device)
        lines = torch.arange(len(ids), device=ids.device)

        def add(output: Tensor) -> Tensor:
            if delta is None:
                return output
            return output.index_put((lines, positions), delta[facts].to(output.dtype), True)

        with changed_output(self.site, len(ids), add):
            logits = self.model.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return ids, logits

    @torch.no_grad()
    def _activations(self, prompts: Sequence[LocatedPrompt]) -> Float[Tensor, "facts width"]:
        ids, mask, positions = right_padded(prompts, self.model.end_id, self.model.device)
        with recorded(self.site, len(ids)) as recording:
            self.model.network(input_ids=ids, attention_mask=mask, use_cache=False)
        return recording.output[torch.arange(len(ids), device=ids.device), positions].float()


def _about_subject(model: LanguageModel, row: Example) -> LocatedPrompt:
    subject = row.subject or row.prompt
    return locate_subject(model, f"{subject} is a", subject or None)


def _key(model: LanguageModel, examples: ExampleSet, settings: TargetSettings) -> Key:
    described = "\n".join(row.model_dump_json() for row in examples.rows)
    return {
        "model": model.fingerprint,
        "examples": hashlib.sha256(f"{examples.loss}\n{described}".encode()).hexdigest(),
        "layer": settings.layer,
        "site": settings.site,
        "prefixes": json.dumps(settings.prefixes),
        "steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "clamp": settings.clamp,
        "kl_weight": settings.kl_weight,
        "weight_decay": settings.weight_decay,
        "device": model.device_name,
        "attention": model.kernel,
        "version": 2,  # of the search itself
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
