"""What an installed wheel can do outside the clone, and without the service libraries."""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import lazy_loader
import pytest

from tests.support.clone import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, ROOT],
        check=True,
        timeout=900,
    )
    (found,) = out.glob("*.whl")
    return found


def test_an_installed_tuner_finds_its_spaces_tasks_and_model(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
        timeout=600,
    )
    code = (
        "import tuner, tuner.files.shipped, pathlib;"
        f"assert pathlib.Path(tuner.__file__).is_relative_to({str(site)!r}), tuner.__file__;"
        "from tuner.search import load_space;"
        "print(tuner.load_task('country_capital').name, load_space('lora') is not None,"
        " tuner.load_model('builtin:neox').layer_count)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["country_capital", "True", "4"]


SERVICES = ("ray", "optuna", "mlflow", "plotly")


def test_the_core_works_without_the_service_libraries(tmp_path: Path) -> None:
    code = f"""
import sys

for name in {SERVICES!r}:
    sys.modules[name] = None  # as if it were not installed, also for those who only look
import tuner
from tuner.editing.corpus import load_general_text, TextPart
model = tuner.load_model("builtin:neox")
general = load_general_text(None, model, tokens={{TextPart.SEARCH: 8000, TextPart.AUXILIARY: 4000}})
editor = tuner.find_editor("lora")(learning_rate=3e-3, epochs=1, batch_size=30)
result = tuner.run_trial(model, tuner.load_task("country_capital"), editor,
                         tuner.Budget(epsilons=(0.1,)), general=general)
print(result.at(0.1).success > 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_import_reads_no_library_until_something_is_used(tmp_path: Path) -> None:
    """`import tuner` needs lazy_loader, which is what defers the rest, and the standard library."""
    bare, site = tmp_path / "bare", tmp_path / "site"
    venv.create(bare, with_pip=False)
    shutil.copytree(Path(lazy_loader.__file__).parent, site / "lazy_loader")
    done = subprocess.run(
        [bare / "bin" / "python", "-c", "import tuner; print(sorted(dir(tuner))[0])"],
        env={"PYTHONPATH": f"{ROOT}:{site}", "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_s_python_runs_as_it_stands(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = [block.split("```")[0] for block in readme.split("```python\n")[1:]]
    # The other one is about a memory and a prompt that the reader has.
    (code,) = (block for block in blocks if block.startswith("import tuner\n"))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    numbers, completion = done.stdout.strip().splitlines()[-2:]
    assert numbers
    assert completion
