"""What all trials on a model and a text share, taken once before a search."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import final

from pydantic import BaseModel, ConfigDict, Field

from tuner.editing.corpus import GeneralText, TextPart
from tuner.editing.editor import Auxiliary, Editor
from tuner.editing.model import LanguageModel
from tuner.evaluation.deviation.block_reader import BlockReader
from tuner.evaluation.deviation.gradient_store import GradientStore
from tuner.evaluation.deviation.reach import decided_budget
from tuner.files.cache import Cache

Listener = Callable[[str, int, int], None]
"""(what, tokens read, tokens in all)"""

GRADIENT, BASE_LOSSES, STATISTICS = "mean gradient", "base losses", "editors' statistics"


@final
class Preparation(BaseModel):
    """What was taken, and what it is worth."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: int = Field(description="Parameters whose gradient is known.")
    gradient_tokens: int
    search_tokens: int
    confirmation_tokens: int
    block_length: int
    seconds: dict[str, float] = Field(description="By what was taken.")
    decides: float = Field(description="The least ε at which most edits at 0.7 ε are certified.")
    decides_without: float = Field(description="The same without the gradient.")
    cache: Path


def prepare(
    model: LanguageModel,
    text: GeneralText,
    editors: Iterable[type[Editor]],
    cache: Cache,
    listener: Listener | None = None,
) -> Preparation:
    """Return what was taken for searches with these editors; what the cache has is not retaken.

    Raises:
        TaskError: there is too little general text.
        EditError: the text is not enough for an editor's statistics.
        DiskError: the cache cannot be written.
    """
    told = listener or (lambda *_: None)
    kinds = tuple(editors)
    names = {name for kind in kinds for name in kind.weights_of(model)}
    seconds: dict[str, float] = {}
    parts = {part: text.corpus(part) for part in TextPart}
    began = time.perf_counter()
    if names:
        store = GradientStore(model, text, cache)
        store.prepare(names, lambda read, total: told(GRADIENT, read, total))
        seconds[GRADIENT] = time.perf_counter() - began
    began = time.perf_counter()
    # Those of the confirmation part are read as far as certificates need them.
    reader = BlockReader(model, parts[TextPart.SEARCH], cache=cache, tokens_per_batch=2048)
    for chunk in reader.chunks:
        reader.base_losses(chunk.stop)
        told(BASE_LOSSES, chunk.stop * text.block_length, parts[TextPart.SEARCH].blocks.numel())
    reader.save()
    seconds[BASE_LOSSES] = time.perf_counter() - began
    began = time.perf_counter()
    told(STATISTICS, 0, 1)
    aux = Auxiliary(general=parts[TextPart.AUXILIARY], cache=cache)
    for kind in kinds:
        kind.prepare(model, aux)
    told(STATISTICS, 1, 1)
    seconds[STATISTICS] = time.perf_counter() - began
    gradient = parts[TextPart.GRADIENT].predicted_tokens if names else 0
    fresh = parts[TextPart.CONFIRMATION].predicted_tokens
    return Preparation(
        weights=sum(model.network.get_parameter(name).numel() for name in names),
        gradient_tokens=gradient,
        search_tokens=parts[TextPart.SEARCH].predicted_tokens,
        confirmation_tokens=fresh,
        block_length=text.block_length,
        seconds=seconds,
        decides=decided_budget(fresh, gradient, text.block_length),
        decides_without=decided_budget(fresh, 0, text.block_length),
        cache=cache.folder,
    )
