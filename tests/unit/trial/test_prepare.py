"""What trials share is taken once: gradient, base losses, statistics."""

from pathlib import Path
from random import Random

import pytest

from tuner.editing.corpus import FileDocuments, GeneralText, TextPart
from tuner.editing.model import LanguageModel
from tuner.editors import find_editor
from tuner.evaluation.deviation.reach import decided_budget
from tuner.files.cache import Cache
from tuner.trial.prepare import BASE_LOSSES, GRADIENT, STATISTICS, prepare


@pytest.fixture
def text(neox: LanguageModel, tmp_path: Path) -> GeneralText:
    random = Random(0)
    lines = (
        " ".join("".join(random.choices("abcdefghij", k=4)) for _ in range(20)) for _ in range(900)
    )
    path = tmp_path / "general.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return GeneralText(
        FileDocuments(path), neox, block_length=16, tokens=dict.fromkeys(TextPart, 16 * 300)
    )


def test_a_second_preparation_runs_the_model_for_nothing_but_noise(
    neox: LanguageModel, text: GeneralText, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    told: list[str] = []
    editors = [find_editor("lora"), find_editor("memit")]
    taken = prepare(neox, text, editors, cache, lambda what, *_: told.append(what))
    assert list(dict.fromkeys(told)) == [GRADIENT, BASE_LOSSES, STATISTICS]
    assert taken.gradient_tokens == 300 * 15
    runs: list[int] = []
    handle = neox.network.register_forward_hook(lambda *_: runs.append(1))
    again = prepare(neox, text, editors, cache)
    handle.remove()
    assert not runs
    assert again.model_dump(exclude={"seconds"}) == taken.model_dump(exclude={"seconds"})
    assert {path.parent.name for path in cache.folder.rglob("*.safetensors")} >= {
        "base_losses", "second_moment", "factor",
    }  # fmt: skip


def test_methods_that_change_no_weights_need_no_gradient(
    neox: LanguageModel, text: GeneralText, tmp_path: Path
) -> None:
    taken = prepare(neox, text, [find_editor("grace")], Cache(tmp_path / "cache"))
    assert (taken.weights, taken.gradient_tokens) == (0, 0)
    assert GRADIENT not in taken.seconds
    assert taken.decides == taken.decides_without


def test_only_what_the_editors_may_change_is_differentiated(
    neox: LanguageModel, text: GeneralText, tmp_path: Path
) -> None:
    sizes = [
        prepare(neox, text, [find_editor(name)], Cache(tmp_path / name)).weights
        for name in ("rome", "lora", "full_finetuning")
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_more_text_decides_smaller_budgets() -> None:
    assert decided_budget(600_000, 0, 512) < decided_budget(100_000, 0, 512)
    assert decided_budget(600_000, 2_000_000, 512) < decided_budget(600_000, 0, 512)
    # The same text in shorter blocks says as much.
    assert decided_budget(600_000, 0, 128) == pytest.approx(
        decided_budget(600_000, 0, 512), rel=0.3
    )
