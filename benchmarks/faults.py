"""What a search loses when all that is around it fails: nothing, or a fault of ours.

Each search is the command line's own, with its ledger in PostgreSQL and its runs on an MLflow
server whose backend is the same PostgreSQL; both are reached through a network that can be cut.
Its trials rest until there were some strikes, then edit a tiny model. Strikes come at moments drawn
from the seed; a search that ends before there were as many as asked for is followed by another.
After each, `tuner status --sync` is run as a user would, and everything is counted.

Faults of the machine itself have tests of their own, which are run and counted here.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, SecretStr

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from tests.support.postgres_server import PostgresServer  # noqa: E402
from tests.support.ray_faults import JumpingClock  # noqa: E402
from tests.support.resting import RELEASED  # noqa: E402
from tests.support.search_world import make_world, tiny_config  # noqa: E402
from tests.support.tcp_proxy import Cut, TcpProxy  # noqa: E402
from tests.support.warm_mlflow import WarmMlflow, WarmServer  # noqa: E402
from tuner.evaluation.deviation.budget import Budget  # noqa: E402
from tuner.search import open_study  # noqa: E402
from tuner.trial.records import StudyResultRecord, TrialState  # noqa: E402

EXAMPLES = """\
examples:
  python benchmarks/faults.py --fault mlflow --kills 3
      one fault, a few strikes, the table on the terminal
  python benchmarks/faults.py --kills 50 --seed 0 --json benchmarks/results/faults.json
      every fault; run the same command again to go on where it was stopped
"""

STUDY = "tiny"
EXPERIMENT = "tuner"
_LEAPS_S = (3600, -3600, 86400, -86400, 30 * 86400, -400 * 86400)


class Run(BaseModel):
    """What one search came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: str
    seed: int
    search: int
    strikes: dict[str, int]
    """How often what was done from the first trial's start on."""
    early: int
    """Strikes before that, while the driver was starting."""
    trials: int
    lost: list[int] = []
    """Trials that were asked for and have not been completed."""
    doubled: list[str] = []
    """Trials, runs or points that are there twice."""
    missing: list[str] = []
    """What MLflow lacks after the sync."""
    tracebacks: int = 0
    hung: bool = False
    exit_code: int | None = 0
    sync_exit_code: int | None = 0
    waiting: int = 0
    """How many trials MLflow lacked before the sync."""
    winners: int = 0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, doubled or said wrongly."""
        return not (
            self.lost
            or self.doubled
            or self.missing
            or self.tracebacks
            or self.hung
            or self.exit_code
            or self.sync_exit_code
        )


class Site:
    """All that one search stands on; each part can be taken away and given back."""

    def __init__(self, folder: Path, world: Path, exits: ExitStack) -> None:
        """Start the servers and the networks before them."""
        folder.mkdir(parents=True)
        self.folder = folder
        self.studies = folder / "studies"
        self._world = world
        self.database = PostgresServer()
        exits.callback(self.database.end)
        self.database.add_database("runs")
        warm = WarmMlflow(folder / "mlflow.log")
        exits.callback(warm.close)
        self.tracking = WarmServer(warm, self.database.url("runs"), folder / "artifacts")
        exits.callback(self.tracking.kill)
        self.tracking.start()
        self.networks = {
            "ledger": TcpProxy(self.database.port),
            "mlflow": TcpProxy(self.tracking.port),
        }
        for network in self.networks.values():
            exits.callback(network.end)
        self.clock: JumpingClock | None = None
        self._strikes = folder / "strikes"
        self._strikes.touch()

    def count_strike(self) -> None:
        """Let the trials know."""
        with self._strikes.open("ab") as strikes:
            strikes.write(b".")

    def release(self) -> None:
        """Let no trial wait for a strike any more."""
        os.truncate(self._strikes, RELEASED)

    @property
    def has_begun(self) -> bool:
        """Whether a worker has taken a trial."""
        return any(self.studies.glob(f"{STUDY}/places/*"))

    @property
    def ledger_url(self) -> SecretStr:
        """The address of the ledger, through the network that can be cut."""
        true = f":{self.database.port}/"
        return SecretStr(self.database.url().replace(true, f":{self.networks['ledger'].port}/"))

    @property
    def environment(self) -> dict[str, str]:
        """What the command line is given."""
        given = {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            # As its driver, and no less: on a busy machine it would not move.
            "RAY_worker_niceness": "0",
            "TUNER_STUDIES": str(self.studies),
            "TUNER_STORAGE": self.ledger_url.get_secret_value(),
            "TUNER_CACHE": str(self._world.parent / "cache"),
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.networks['mlflow'].port}",
        }
        if self.clock is not None:
            path = given["PYTHONPATH"]
            given |= self.clock.variables
            given["PYTHONPATH"] += os.pathsep + path
        return os.environ | given

    @contextmanager
    def driver(self, trials: int) -> Iterator[subprocess.Popen[bytes]]:
        """Start the search; on leaving, nothing of it runs any more."""
        space = self.folder / "space.yaml"
        fixed = {"strikes": str(self._strikes), "log": str(self.folder / "runs.log")}
        rates = {"type": "float", "low": 1e-3, "high": 1e-1, "log": True}
        space.write_text(
            yaml.safe_dump(
                {
                    "editor": "tests.support.resting:Resting",
                    "fixed": fixed,
                    "search": {"learning_rate": rates},
                }
            )
        )
        config = tiny_config(
            self._world,
            trials,
            space=str(space),
            workers=1,
            sampler="random",
            budget=Budget(epsilons=(1e-1,)),
            confirm_top=1,
            test_seeds=1,
        )
        (self.folder / "study.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        with (self.folder / "driver.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tuner", "search", "study.yaml", "--json"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                yield process
            finally:
                if process.poll() is None:
                    for one in reversed(psutil.Process(process.pid).children(recursive=True)):
                        one.kill()
                    process.kill()
                    process.wait(30)

    def status(self) -> int:
        """Send MLflow what it lacks, as a user does, and return the exit code."""
        with (self.folder / "status.log").open("wb") as log:
            return subprocess.run(
                [sys.executable, "-m", "tuner", "status", STUDY, "--sync"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=900,
                check=False,
            ).returncode


def kill_mlflow(site: Site, draw: random.Random) -> str:
    """Kill the MLflow server, and start it again."""
    site.tracking.kill()
    time.sleep(draw.uniform(0, 3))
    site.tracking.start()
    return "killed"


def kill_postgresql(site: Site, draw: random.Random) -> str:
    """Kill PostgreSQL under the ledger and MLflow, and let it recover."""
    how = draw.choice(("killed", "stopped at once"))
    if how == "killed":
        site.database.kill()
    else:
        site.database.stop()
    time.sleep(draw.uniform(0, 3))
    site.database.start()
    return how


def cut_network(site: Site, draw: random.Random) -> str:
    """Cut the network to the ledger or to MLflow, and mend it."""
    where, how = draw.choice(sorted(site.networks)), draw.choice(list(Cut))
    site.networks[where].cut(how)
    # Longer than the half minute in which a session whose other end has vanished is noticed.
    time.sleep(draw.uniform(35, 50) if draw.random() < 0.15 else draw.uniform(0, 4))
    site.networks[where].mend()
    return f"{where} {how}"


def leap(site: Site, draw: random.Random) -> str:
    """Let the clock of driver and workers leap."""
    seconds = draw.choice(_LEAPS_S)
    if site.clock is not None:
        site.clock.jump(seconds)
    time.sleep(draw.uniform(0, 3))
    return f"{seconds:+d} s"


FAULTS: dict[str, Callable[[Site, random.Random], str]] = {
    "mlflow": kill_mlflow,
    "postgresql": kill_postgresql,
    "network": cut_network,
    "clock": leap,
}


TESTS: dict[str, tuple[str, ...]] = {
    "disk": ("-k", "full_disk or disk_that_is_full", "tests/unit", "tests/integration"),
    "machine": ("tests/integration/test_local_ray.py",),
}
"""What tests the machine's own faults: a full disk; a closed terminal, small shared memory."""


def run_tests(fault: str, seed: int) -> Run:
    """Return what the tests of a fault came to; each counts as a strike."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tuner-faults-") as folder:
        report = Path(folder) / "report.xml"
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *TESTS[fault]],
            cwd=ROOT,
            stdout=sys.stderr,
            check=False,
        ).returncode
        suite = next(ElementTree.parse(report).iter("testsuite"))
        counts = {key: int(suite.get(key, 0)) for key in ("tests", "skipped")}
    return Run(
        fault=fault,
        seed=seed,
        search=0,
        strikes={"tests": counts["tests"] - counts["skipped"]},
        early=0,
        trials=0,
        exit_code=code,
        seconds=round(time.monotonic() - started, 1),
    )


def run_search(
    faults: tuple[str, ...],
    world: Path,
    folder: Path,
    *,
    seed: int,
    search: int,
    trials: int,
    most: int,
    limit_s: float,
) -> Run:
    """Return what a search came to during which the faults happened, `most` times at most."""
    name = "+".join(faults)
    draw = random.Random(f"{name} {seed} {search}")
    started = time.monotonic()
    with ExitStack() as exits:
        site = Site(folder, world, exits)
        if "clock" in faults:
            site.clock = JumpingClock(folder)
        strikes: Counter[str] = Counter()
        early = 0
        with site.driver(trials) as driver:
            while driver.poll() is None and time.monotonic() - started < limit_s:
                if strikes.total() >= most:
                    site.release()
                    _wait(driver, 1.0)
                    continue
                begun = site.has_begun
                if not _wait(driver, draw.uniform(0.2, 3.0) if begun else draw.uniform(2, 15)):
                    what = FAULTS[draw.choice(faults)](site, draw)
                    site.count_strike()
                    strikes[what] += begun
                    early += not begun
            hung = driver.poll() is None
        code = driver.returncode
        waiting = len(_missing(site, _result(site)))
        sync_code = site.status()
        result = _result(site)
        said = _read(folder / "driver.log") + _read(folder / "status.log")
        return Run(
            fault=name,
            seed=seed,
            search=search,
            strikes={what: count for what, count in strikes.items() if count},
            early=early,
            trials=trials,
            lost=_lost(result, trials),
            doubled=_doubled(site, result, trials),
            missing=_missing(site, result),
            tracebacks=said.count("Traceback (most recent call last)"),
            hung=hung,
            exit_code=code,
            sync_exit_code=sync_code,
            waiting=waiting,
            winners=len(result.winners),
            seconds=round(time.monotonic() - started, 1),
        )


def _wait(driver: subprocess.Popen[bytes], seconds: float) -> bool:
    """Return whether the driver has ended within so many seconds."""
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _result(site: Site) -> StudyResultRecord:
    return open_study(site.studies / STUDY, site.ledger_url).record


def _lost(result: StudyResultRecord, trials: int) -> list[int]:
    completed = {
        entry.number
        for entry in result.entries
        if entry.state is TrialState.COMPLETED and entry.record is not None
    }
    return sorted(set(range(trials)) - completed)


def _doubled(site: Site, result: StudyResultRecord, trials: int) -> list[str]:
    """Return what is there twice: in the ledger, among what the workers did, in MLflow."""
    numbers = Counter(entry.number for entry in result.entries)
    # Drawn from a continuum: two alike are one proposal that was written twice.
    rates = Counter(str(entry.parameters["learning_rate"]) for entry in result.entries)
    seeds = Counter(map(int, _read(site.folder / "runs.log").split()))
    runs, points = _runs(site, result), Counter[tuple[object, ...]]()
    for uid, found in runs.items():
        points.update((uid, *point) for run in found for point in run["points"])
    twice = [f"trial {number}" for number, count in numbers.items() if count > 1]
    twice += [f"learning rate {rate}" for rate, count in rates.items() if count > 1]
    twice += [f"work of {seed}" for seed, count in seeds.items() if seed < trials and count > 1]
    twice += [f"run {uid}" for uid, found in runs.items() if len(found) > 1]
    return twice + [f"point {point}" for point, count in points.items() if count > 1]


def _missing(site: Site, result: StudyResultRecord) -> list[str]:
    """Return what MLflow lacks of a study, by its records alone."""
    runs = _runs(site, result)
    uid = result.summary.uid
    missing = []
    if not any(run["status"] == "FINISHED" for run in runs.get(f"{uid}/study", [])):
        missing.append("the study's run")
    won = {(winner.trial, winner.epsilon) for winner in result.winners}
    for entry in result.entries:
        shown = runs.get(f"{uid}/{entry.number}", [])
        if not shown:
            missing.append(f"run {entry.number}")
            continue
        run = shown[0]
        if run["status"] != "FINISHED":
            missing.append(f"end of run {entry.number}: {run['status']}")
        if float(run["params"].get("learning_rate", "nan")) != entry.parameters["learning_rate"]:
            missing.append(f"parameters of run {entry.number}")
        record = entry.record
        if record is None:
            continue
        told = {(epoch.epoch, epoch.success) for epoch in record.epochs}
        if not told <= {(step, value) for key, step, value, _ in run["points"] if key == "success"}:
            missing.append(f"epochs of run {entry.number}")
        for answer in record.answers:
            key = f"{answer.rule}.eps_{answer.epsilon:.0e}/gain"
            if run["metrics"].get(key) != answer.gain:
                missing.append(f"{key} of run {entry.number}")
        missing += [
            f"bundle of run {entry.number}: {file.name}"
            for epsilon, folder in entry.bundles
            if (entry.number, epsilon) in won
            for file in (folder.parents[2] / "winners" / folder.name).iterdir()
            if run["files"].get(f"bundles/eps_{epsilon:.0e}/{file.name}") != file.stat().st_size
        ]
    return missing


def _runs(site: Site, result: StudyResultRecord) -> dict[str, list[dict[str, Any]]]:
    """Return MLflow's runs of the study by their tag, read without the library under test."""
    import mlflow

    client = mlflow.MlflowClient(site.tracking.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs: dict[str, list[dict[str, Any]]] = {}
    if experiment is None:
        return runs
    study = f"tags.`tuner.study` = '{result.summary.uid}'"
    won = {winner.trial for winner in result.winners}
    for run in client.search_runs([experiment.experiment_id], study, max_results=1000):
        uid = run.data.tags["tuner.uid"]
        number = uid.rpartition("/")[2]
        history = client.get_metric_history(run.info.run_id, "success")
        runs.setdefault(uid, []).append(
            {
                "status": run.info.status,
                "params": run.data.params,
                "metrics": run.data.metrics,
                "points": [("success", one.step, one.value, one.timestamp) for one in history],
                "files": (
                    dict(_files(client, run.info.run_id))
                    if number.isdigit() and int(number) in won
                    else {}
                ),
            }
        )
    return runs


def _files(client: Any, run_id: str, folder: str | None = None) -> Iterator[tuple[str, int]]:
    for one in client.list_artifacts(run_id, folder):
        if one.is_dir:
            yield from _files(client, run_id, one.path)
        else:
            yield one.path, one.file_size


def table(runs: list[Run]) -> str:
    """Return one row per fault: strikes, and all that went wrong."""
    head = ("fault", "strikes", "searches", "trials", "lost", "doubled", "missing", "tracebacks")
    head += ("hangs", "other exits", "waited for sync", "seconds")
    rows = [head]
    for fault in dict.fromkeys(run.fault for run in runs):
        of_it = [run for run in runs if run.fault == fault]
        figures = (
            sum(sum(run.strikes.values()) for run in of_it),
            len(of_it),
            sum(run.trials for run in of_it),
            sum(len(run.lost) for run in of_it),
            sum(len(run.doubled) for run in of_it),
            sum(len(run.missing) for run in of_it),
            sum(run.tracebacks for run in of_it),
            sum(run.hung for run in of_it),
            sum(bool(run.exit_code or run.sync_exit_code) for run in of_it),
            sum(run.waiting for run in of_it),
            round(sum(run.seconds for run in of_it)),
        )
        rows.append((fault, *map(str, figures)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Counts what searches lose while all that is around them fails.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--fault",
        action="append",
        choices=sorted(FAULTS | TESTS),
        help="may be repeated; default all",
    )
    parser.add_argument("--kills", type=int, default=50, help="strikes per fault (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of all moments (default 0)")
    parser.add_argument("--trials", type=int, default=40, help="per search (default 40)")
    parser.add_argument("--limit", type=float, default=3000, help="seconds until a search hangs")
    parser.add_argument("--json", type=Path, help="file of results; continued where it exists")
    parser.add_argument(
        "--keep", type=Path, help="folder for the logs of searches, by default none"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs: list[Run] = []
    if options.json and options.json.exists():
        runs = [Run.model_validate(one) for one in json.loads(options.json.read_text())["runs"]]
    with tempfile.TemporaryDirectory(prefix="tuner-faults-") as scratch:
        folder = options.keep or Path(scratch)
        world = make_world(Path(scratch) / "world")
        for fault in options.fault or sorted(FAULTS | TESTS):
            while True:
                done = [run for run in runs if (run.fault, run.seed) == (fault, options.seed)]
                left = options.kills - sum(sum(run.strikes.values()) for run in done)
                if left <= 0 or (fault in TESTS and done):
                    break
                print(f"{fault}: {options.kills - left} of {options.kills}", file=sys.stderr)
                if fault in TESTS:
                    run = run_tests(fault, options.seed)
                else:
                    run = run_search(
                        (fault,),
                        world,
                        folder / f"{fault}-{options.seed}-{len(done)}",
                        seed=options.seed,
                        search=len(done),
                        trials=options.trials,
                        most=left,
                        limit_s=options.limit,
                    )
                runs.append(run)
                if not run.is_clean:
                    print(f"{fault}: {run.model_dump_json()}", file=sys.stderr)
                if options.json:
                    results = {"runs": [one.model_dump() for one in runs]}
                    draft = options.json.with_suffix(".draft")
                    draft.write_text(json.dumps(results, indent=1) + "\n")
                    draft.replace(options.json)
    print(table(runs))
    return 0 if all(run.is_clean for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
