"""Who needs the same trained weights at the same time trains them once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor

from tuner.editors._training.amortised import trained_once
from tuner.files.cache import Cache

KEY = {"of": "this test"}


def test_the_others_wait_for_the_one_that_trains(tmp_path: Path) -> None:
    begun, asked = Event(), Event()
    trainings = []

    def make() -> dict[str, Tensor]:
        trainings.append(1)
        begun.set()
        assert asked.wait(30)
        return {"weight": torch.ones(2)}

    def need() -> dict[str, Tensor]:
        return trained_once(Cache(tmp_path), "network", KEY, make)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(need)
        assert begun.wait(30)
        others = [pool.submit(need) for _ in range(3)]
        asked.set()
        found = [one.result(timeout=30) for one in (first, *others)]
    assert len(trainings) == 1
    assert all(torch.equal(one["weight"], torch.ones(2)) for one in found)


def test_a_training_that_fails_is_left_to_the_next(tmp_path: Path) -> None:
    def fail() -> dict[str, Tensor]:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        trained_once(Cache(tmp_path), "network", KEY, fail)
    made = trained_once(Cache(tmp_path), "network", KEY, lambda: {"weight": torch.zeros(1)})
    assert made["weight"].tolist() == [0.0]


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    made = trained_once(
        Cache(tmp_path / "file"), "network", KEY, lambda: {"weight": torch.zeros(1)}
    )
    assert made["weight"].tolist() == [0.0]
