"""Fixtures that several kinds of tests share. A test's folder sets its marker."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    PreTrainedTokenizerFast,
)

from tests.support.command_line import Run
from tests.support.tiny_models import FAMILIES, WORDS, make_tiny_model, save_model
from tuner.editing.corpus import Corpus, FileDocuments, GeneralText
from tuner.editing.model import LanguageModel
from tuner.editing.task import Example, ExampleSet, LossKind, Split, Task

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="cpu or cuda: where the tests of editors and memories put their models.",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    for item in items:
        kind = item.path.relative_to(root).parts[0]
        item.add_marker(getattr(pytest.mark, kind))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads what another run left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with an end-of-text token, as the families have it."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [WORDS] * 20, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, tokenizer: PreTrainedTokenizerFast, device: str) -> LanguageModel:
    """A tiny model of each family in turn."""
    return make_tiny_model(family, tokenizer, device)


@pytest.fixture
def neox(tokenizer: PreTrainedTokenizerFast, device: str) -> LanguageModel:
    """A tiny GPT-NeoX model."""
    return make_tiny_model("gpt_neox", tokenizer, device)


@pytest.fixture
def backpack(tokenizer: PreTrainedTokenizerFast, device: str) -> LanguageModel:
    """A tiny Backpack."""
    return make_tiny_model("backpack", tokenizer, device)


@pytest.fixture(scope="session")
def small(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Backpack that shares its tokenizer with all tiny models."""
    folder = tmp_path_factory.mktemp("small")
    return save_model(make_tiny_model("backpack", tokenizer), folder)


@pytest.fixture(scope="session")
def tiny(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny GPT-NeoX model that shares its tokenizer with all tiny models."""
    folder = tmp_path_factory.mktemp("tiny")
    return save_model(make_tiny_model("gpt_neox", tokenizer), folder)


@pytest.fixture
def examples() -> ExampleSet:
    return ExampleSet(
        loss=LossKind.LIKELIHOOD,
        rows=tuple(
            Example(prompt=f"The capital of {country} is", target=f" {city}", subject=country)
            for country, city in (
                ("Mauritius", "Port Louis"),
                ("Togo", "Lome"),
                ("Chile", "Santiago"),
            )
        ),
    )


@pytest.fixture
def corpus() -> Corpus:
    """Random blocks in place of general text."""
    blocks = torch.randint(0, 256, (96, 16), generator=torch.Generator().manual_seed(1))
    return Corpus(name="random blocks", blocks=blocks)


@pytest.fixture
def training() -> Split:
    """Six other edits for learned editors, with rows in and out of their scope."""
    countries = ("Peru", "Mali", "Oman", "Cuba", "Fiji", "Iran")
    cities = (" Lome", " Port Louis", " Santiago", " Chile", " Togo", " Mauritius")

    def rows(frame: str, targets: tuple[str, ...]) -> tuple[Example, ...]:
        return tuple(
            Example(prompt=frame.format(country), target=target, subject=country, record=country)
            for country, target in zip(countries, targets, strict=True)
        )

    likelihood = LossKind.LIKELIHOOD
    return Split(
        canonical=ExampleSet(loss=likelihood, rows=rows("The capital of {} is", cities)),
        ood=ExampleSet(
            loss=likelihood,
            rows=(*rows("a big town of {} is", cities), *rows("The city of {} is", cities)),
        ),
        hard_negatives=ExampleSet(
            loss=likelihood, rows=rows("The town is big and {} is a", (" city",) * 6)
        ),
    )


@pytest.fixture
def task(examples: ExampleSet) -> Task:
    """A task of three countries; its splits differ in wording only."""
    splits = {}
    for name, frame in (("val", "a big town of {} is"), ("test", "a city of {} is")):
        rows = tuple(
            Example(prompt=frame.format(row.subject), target=row.target, subject=row.subject)
            for row in examples.rows
        )
        splits[name] = Split(
            canonical=examples,
            ood=ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows),
            hard_negatives=ExampleSet(loss=LossKind.LIKELIHOOD, rows=rows[:1]),
            related=(),
        )
    return Task(
        name="capitals",
        description="Three capitals.",
        loss=LossKind.LIKELIHOOD,
        threshold=1.6,
        source="made up",
        licence="Apache-2.0",
        val=splits["val"],
        test=splits["test"],
    )


TEXT = "a big town of Mauritius and the capital city of Togo is Port Louis Lome Chile".split()


@pytest.fixture
def general(neox: LanguageModel, tmp_path: Path) -> GeneralText:
    """General text for the tiny GPT-NeoX model: 600 documents of twelve words."""
    lines = []
    random = torch.Generator().manual_seed(0)
    for _ in range(600):
        picks = torch.randint(0, len(TEXT), (12,), generator=random).tolist()
        lines.append(json.dumps({"text": " ".join(TEXT[pick] for pick in picks)}))
    path = tmp_path / "general.jsonl"
    path.write_text("\n".join(lines))
    return GeneralText(FileDocuments(path), neox, block_length=16)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a verb in this process; return exit code, output and messages."""
    from tuner.cli import main

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tuner", *arguments])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, said.out, said.err

    return call
