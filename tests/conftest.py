"""Fixtures that several kinds of tests share. A test's folder sets its marker."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.support.command_line import Run
from tuner.editing.corpus import Corpus, FileDocuments, GeneralText
from tuner.editing.model import LanguageModel
from tuner.editing.task import ExampleSet, Split, Task
from tuner.testing.editors import families_in
from tuner.testing.tiny_models import make_tiny_model, save_model, tiny_tokenizer
from tuner.testing.tiny_task import tiny_corpus, tiny_examples, tiny_task, tiny_training

if TYPE_CHECKING:
    from tests.support.shared_ray import SharedRay

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="cpu or cuda: where the tests of editors and memories put their models.",
    )
    parser.addoption(
        "--all-families",
        action="store_true",
        help="Try editors and memories on every family of models, not on three of them.",
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
        # Ray lets everything else on a machine go first (nice 15), here the tests beside it.
        patch.setenv("RAY_worker_niceness", "0")
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with an end-of-text token, as the families have it."""
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a family on those that differ most, or on all with --all-families."""
    marks = metafunc.definition.iter_markers("parametrize")
    settled = hasattr(metafunc.cls, "pytest_generate_tests") or any(
        "family" in mark.args[0] for mark in marks
    )
    if "family" in metafunc.fixturenames and not settled:
        metafunc.parametrize("family", families_in(metafunc.config))


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
    return tiny_examples()


@pytest.fixture
def corpus() -> Corpus:
    """Random blocks in place of general text."""
    return tiny_corpus()


@pytest.fixture
def training() -> Split:
    """Six other edits for learned editors, with rows in and out of their scope."""
    return tiny_training()


@pytest.fixture
def task() -> Task:
    """A task of three countries; its splits differ in wording only."""
    return tiny_task()


TEXT = "a big town of Mauritius and the capital city of Togo is Port Louis Lome Chile".split()


@pytest.fixture
def general(neox: LanguageModel, tmp_path: Path) -> GeneralText:
    """General text for the tiny GPT-NeoX model: 1,200 documents of twelve words."""
    lines = []
    random = torch.Generator().manual_seed(0)
    for _ in range(1200):
        picks = torch.randint(0, len(TEXT), (12,), generator=random).tolist()
        lines.append(json.dumps({"text": " ".join(TEXT[pick] for pick in picks)}))
    path = tmp_path / "general.jsonl"
    path.write_text("\n".join(lines))
    return GeneralText(FileDocuments(path), neox, block_length=16)


@pytest.fixture(scope="session")
def _shared_ray() -> Iterator["SharedRay"]:
    # Unit tests need no Ray, which takes long to import.
    from tests.support.shared_ray import SharedRay

    shared = SharedRay()
    yield shared
    shared.end()


@pytest.fixture(scope="module")
def shared_ray(_shared_ray: "SharedRay") -> Iterator[str]:
    """The address of a Ray of two CPUs, started once for all tests that do not test its start.

    Ray's eight processes are most of what a small study costs.
    """
    with _shared_ray.known():
        yield _shared_ray.address


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
