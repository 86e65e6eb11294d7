"""The mean gradient is taken once, on text that is not measured on, and kept by layer."""

from pathlib import Path
from random import Random

import pytest
import torch

from tuner.editing.corpus import Corpus, FileDocuments, GeneralText, TextPart
from tuner.editing.delta import Dense, LowRank, WeightDelta
from tuner.editing.model import LanguageModel
from tuner.evaluation.deviation.block_reader import BlockReader
from tuner.evaluation.deviation.gradient_store import GradientStore
from tuner.evaluation.deviation.meter import DeviationMeter
from tuner.evaluation.deviation.slopes import block_slopes
from tuner.files.cache import Cache


def random_words(lines: int, words: int, seed: int = 0) -> list[str]:
    """Return lines of made-up words."""
    random = Random(seed)
    return [
        " ".join("".join(random.choices("abcdefghij", k=4)) for _ in range(words))
        for _ in range(lines)
    ]


@pytest.fixture
def text(model: LanguageModel, tmp_path: Path) -> GeneralText:
    return _text(model, tmp_path)


def _text(model: LanguageModel, folder: Path, lines: int = 1500) -> GeneralText:
    path = folder / "general.txt"
    path.write_text("".join(f"{line}\n" for line in random_words(lines, 20)), encoding="utf-8")
    tokens = dict.fromkeys(TextPart, 16 * 2000)
    return GeneralText(FileDocuments(path), model, block_length=16, tokens=tokens)


def linear_weights(model: LanguageModel) -> list[str]:
    return model.architecture.linear_weights(model.network)


def _noise(model: LanguageModel, size: float) -> WeightDelta:
    name = f"{model.architecture.mlp_modules(1)[0]}.weight"
    weight = model.network.get_parameter(name)
    random = torch.Generator().manual_seed(0)
    return WeightDelta({name: Dense(size * torch.randn(weight.shape, generator=random))})


def _direct(model: LanguageModel, text: GeneralText) -> dict[str, torch.Tensor]:
    blocks = text.corpus(TextPart.GRADIENT).blocks
    network = model.network
    network.requires_grad_(True)
    logits = network(input_ids=blocks, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), blocks[:, 1:].flatten(), reduction="sum"
    )
    loss.backward()
    found = {
        name: weight.grad / loss.item()
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }
    network.zero_grad(set_to_none=True)
    network.requires_grad_(False)
    return found


def test_it_is_the_gradient_of_the_relative_rise(
    model: LanguageModel, text: GeneralText, tmp_path: Path
) -> None:
    store = GradientStore(model, text, Cache(tmp_path / "cache"))
    seen: list[tuple[int, int]] = []
    taken = store.prepare(linear_weights(model), lambda read, total: seen.append((read, total)))
    direct = _direct(model, text)
    for name in linear_weights(model):
        torch.testing.assert_close(taken.tensors[name], direct[name], rtol=1e-3, atol=1e-7)
    assert seen[-1][0] == seen[-1][1] == text.corpus(TextPart.GRADIENT).blocks.numel()
    assert not any(weight.requires_grad for weight in model.network.parameters())
    layers = {path.name for path in (tmp_path / "cache").rglob("layer-*.safetensors")}
    assert layers == {f"layer-{layer:03d}.safetensors" for layer in range(model.layer_count)}


def test_a_second_process_finds_it_and_reads_nothing(neox: LanguageModel, tmp_path: Path) -> None:
    text = _text(neox, tmp_path)
    first = GradientStore(neox, text, Cache(tmp_path / "cache")).of(_noise(neox, 1.0))
    runs: list[int] = []
    handle = neox.network.register_forward_hook(lambda *_: runs.append(1))
    second = GradientStore(neox, text, Cache(tmp_path / "cache")).of(_noise(neox, 1.0))
    handle.remove()
    assert first is not None
    assert second is not None
    assert not runs
    assert second.along(_noise(neox, 1.0)) == first.along(_noise(neox, 1.0))


def test_what_was_taken_on_more_text_is_preferred_also_as_the_file_grows(
    neox: LanguageModel, tmp_path: Path
) -> None:
    short = _text(neox, tmp_path)
    cache = Cache(tmp_path / "cache")
    GradientStore(neox, short, cache).prepare(linear_weights(neox))
    source = FileDocuments(tmp_path / "general.txt")
    long = GeneralText(source, neox, block_length=16, tokens={TextPart.GRADIENT: 16 * 3000})
    larger = GradientStore(neox, long, cache).prepare(linear_weights(neox))
    with (tmp_path / "general.txt").open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in random_words(200, 20, seed=9))
    grown = GeneralText(source, neox, block_length=16)
    known = GradientStore(neox, grown, cache).find(linear_weights(neox))
    assert known is not None
    assert known.blocks == larger.blocks > short.corpus(TextPart.GRADIENT).blocks.shape[0]


class _Stopped(Exception):
    pass


def test_one_that_was_stopped_goes_on_and_ends_the_same(
    neox: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.evaluation.deviation.gradient_store._SAVE_EVERY_S", -1.0)
    text = _text(neox, tmp_path)
    names = linear_weights(neox)
    whole = GradientStore(neox, text, Cache(tmp_path / "one")).prepare(names)
    read: list[int] = []

    def stop(done: int, total: int) -> None:
        read.append(done)
        if len(read) == 4:
            raise _Stopped

    store = GradientStore(neox, text, Cache(tmp_path / "two"))
    with pytest.raises(_Stopped):
        store.prepare(names, stop)
    assert store.find(names) is None
    resumed = store.prepare(names, lambda done, _: read.append(done))
    assert read[4] == read[3]  # what came after the last save is read again, and no more
    assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in names)
    assert not list((tmp_path / "two").rglob("partial"))


def test_a_damaged_file_is_taken_again(neox: LanguageModel, tmp_path: Path) -> None:
    text = _text(neox, tmp_path)
    cache = Cache(tmp_path / "cache")
    GradientStore(neox, text, cache).prepare(linear_weights(neox))
    (record,) = (tmp_path / "cache").rglob("gradient.json")
    record.write_text("{")
    assert GradientStore(neox, text, cache).find(linear_weights(neox)) is None
    GradientStore(neox, text, cache).prepare(linear_weights(neox))
    assert GradientStore(neox, text, cache).find(linear_weights(neox)) is not None


def test_text_without_a_part_for_it_has_no_gradient(neox: LanguageModel, tmp_path: Path) -> None:
    text = _text(neox, tmp_path, lines=0)
    store = GradientStore(neox, text, Cache(tmp_path / "cache"))
    assert not store.has_text
    assert store.of(_noise(neox, 1.0)) is None


def test_it_takes_the_linear_noise_out_of_other_text(
    model: LanguageModel, text: GeneralText, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    corpus = text.corpus(TextPart.SEARCH)
    plain = DeviationMeter(model, corpus, confidence=0.95, cache=cache)
    store = GradientStore(model, text, cache)
    helped = DeviationMeter(model, corpus, confidence=0.95, cache=cache, gradient_of=store.of)
    delta = _noise(model, 0.003)
    near = plain.measure(delta, (1e-9,)).estimate + 1e-9  # so near that it cannot be decided
    one, other = (meter.measure(delta, (near,), least=64) for meter in (plain, helped))
    assert one.gradient_tokens == 0
    assert other.gradient_tokens == text.corpus(TextPart.GRADIENT).predicted_tokens
    assert other.standard_error < 0.8 * one.standard_error


def test_in_half_precision_the_slope_is_taken_by_differentiation(
    model: LanguageModel, corpus: Corpus, tmp_path: Path
) -> None:
    path = model.architecture.mlp_modules(1)[-1]
    rows, columns = model.network.get_parameter(f"{path}.weight").shape
    random = torch.Generator().manual_seed(0)
    left, right = (torch.randn(*shape, generator=random) for shape in ((rows, 2), (2, columns)))
    blocks = corpus.blocks[:8]
    few = Corpus("few", blocks)
    for change in (LowRank(0.05 * left, right), Dense(0.05 * left @ right)):
        delta = WeightDelta({f"{path}.weight": change})
        reader = BlockReader(model, few, cache=Cache(tmp_path), tokens_per_batch=64)
        step = 1e-2
        up, down = (reader.rises(delta.scaled(sign * step), range(8)) for sign in (1, -1))
        exact = block_slopes(model.network, delta, blocks)
        torch.testing.assert_close(exact, (up - down) / (2 * step), rtol=2e-2, atol=2e-2)


def test_half_precision_has_a_gradient_too(neox: LanguageModel, tmp_path: Path) -> None:
    half = LanguageModel(neox.network.to(torch.bfloat16), neox.tokenizer, id=neox.id)
    text = _text(half, tmp_path)
    cache = Cache(tmp_path / "cache")
    store = GradientStore(half, text, cache)
    meter = DeviationMeter(
        half, text.corpus(TextPart.SEARCH), confidence=0.95, cache=cache, gradient_of=store.of
    )
    name = f"{half.architecture.mlp_modules(1)[0]}.weight"
    rows, columns = half.network.get_parameter(name).shape
    delta = WeightDelta({name: LowRank(torch.full((rows, 1), 1e-3), torch.ones(1, columns))})
    measured = meter.measure(delta, (meter.measure(delta, (1e-9,)).estimate,))
    assert measured.gradient_tokens > 0
