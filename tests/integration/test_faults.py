"""A few of the strikes of `benchmarks/faults.py`, which deals as many as one likes."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.clone import ROOT
from tests.support.search_world import make_world

pytest.importorskip("mlflow")

pytestmark = [pytest.mark.alone, pytest.mark.thorough]


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    path = ROOT / "benchmarks" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = module
    spec.loader.exec_module(module)
    return module


def test_a_search_struck_from_all_sides_loses_and_doubles_nothing(
    faults: ModuleType, tmp_path: Path
) -> None:
    run = faults.run_search(
        ("mlflow", "postgresql", "network"),
        make_world(tmp_path / "world"),
        tmp_path / "site",
        seed=33,  # draws all three, and no long pause
        search=0,
        trials=3,
        most=3,
        limit_s=600,
    )
    assert run.is_clean, run
    assert run.winners == 1
    assert sum(run.strikes.values()) == 3
