"""A study is launched, followed, stopped, resumed and taken away, against a fake Kubernetes."""

import _thread
import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.clone import ROOT
from tests.support.command_line import Run
from tests.support.fake_kubernetes import FakeKubernetes, ScriptedKubeRay
from tuner.launch import LaunchedStudy, connect, follow

NAME = "a-study"
PLACE = ("--cluster", "local")
# The first launch of a process loads the model libraries, which takes long on a busy machine.
_PATIENCE_S = 400.0


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with FakeKubernetes("tuner") as fake:
        monkeypatch.setenv("KUBECONFIG", str(fake.write_kubeconfig(tmp_path / "config")))
        monkeypatch.delenv("TUNER_CLUSTER", raising=False)
        yield fake


@pytest.fixture
def study(tmp_path: Path) -> str:
    return _write(tmp_path)


def _write(folder: Path, **values: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"name": NAME, "task": "country_capital", **values}))
    return str(path)


Playing = Callable[[str], AbstractContextManager[ScriptedKubeRay]]


@pytest.fixture
def playing(fake: FakeKubernetes) -> Playing:
    return lambda scenario: ScriptedKubeRay(fake, scenario)


@contextmanager
def _soon(act: Callable[[], Any], when: Callable[[], bool]) -> Iterator[None]:
    """Act from another thread as soon as something holds."""
    failed: list[str] = []

    def run() -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not when():
            if time.monotonic() > deadline:
                failed.append("it never held")
                _thread.interrupt_main()  # which may be waiting for us
                return
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert not failed


def _until(holds: Callable[[], bool], seconds: float = _PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _status(fake: FakeKubernetes) -> str:
    job = fake.store.find("rayjobs", "tuner", NAME)
    return str((job or {}).get("status", {}).get("jobDeploymentStatus", ""))


def _left(fake: FakeKubernetes) -> list[str]:
    kinds = ("rayjobs", "rayclusters", "jobs", "pods", "services", "configmaps", "secrets")
    return [
        f"{kind}/{one['metadata']['name']}"
        for kind in kinds
        for one in fake.store.list(kind, "tuner")
    ]


def _posts(fake: FakeKubernetes, what: str) -> int:
    return sum(method == "POST" and path.endswith(what) for method, path, _ in fake.requests)


def test_a_study_is_sent_followed_and_ends_well(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    def reading() -> bool:
        return any(path.endswith("/log") for _, path, _ in fake.requests)

    with playing("running") as kuberay, _soon(kuberay.release, reading):
        code, out, err = run("launch", study, *PLACE)
    assert code == 0
    assert out == ""
    steps = (
        "Sent to the namespace tuner",
        "the search runs",
        "Searching · 0/2 trials done",
        "a-study: completed",
    )
    places = [err.index(words) for words in steps]
    assert places == sorted(places)
    sent = fake.store.get("rayjobs", "tuner", NAME)
    files = fake.store.get("configmaps", "tuner", NAME)
    (owner,) = files["metadata"]["ownerReferences"]
    assert owner["uid"] == sent["metadata"]["uid"]
    posts = [query for method, _, query in fake.requests if method in ("POST", "PATCH")]
    assert all(query["fieldValidation"] == "Strict" for query in posts)


def test_the_last_state_comes_as_json(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("completion"):
        code, out, _ = run("launch", study, *PLACE, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["name"], told["state"], told["place"]) == (NAME, "completed", "tuner")


def test_launching_twice_starts_once(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("running") as kuberay:
        assert run("launch", study, *PLACE, "--detach")[0] == 0
        _until(lambda: _status(fake) == "Running")
        uid = fake.store.get("rayjobs", "tuner", NAME)["metadata"]["uid"]
        kuberay.release()
        code, _, err = run("launch", study, *PLACE)
    assert code == 0
    assert "nothing was sent" in err
    assert "a-study: completed" in err
    assert fake.store.get("rayjobs", "tuner", NAME)["metadata"]["uid"] == uid
    assert _posts(fake, "/rayjobs") == 1


def test_two_launches_at_the_same_time_start_once(
    run: Run, fake: FakeKubernetes, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = fake.store.create

    def slow(plural: str, *rest: Any, **more: Any) -> Any:
        if plural == "rayjobs" and fake.store.find("rayjobs", "tuner", NAME) is None:
            create(plural, *rest, **more)  # somebody else was first
        return create(plural, *rest, **more)

    monkeypatch.setattr(fake.store, "create", slow)
    code, _, err = run("launch", study, *PLACE, "--detach")
    assert code == 0
    assert "nothing was sent" in err


def test_another_study_of_the_name_is_refused_and_says_what_differs(
    run: Run, fake: FakeKubernetes, tmp_path: Path
) -> None:
    assert run("launch", _write(tmp_path), *PLACE, "--detach")[0] == 0
    code, _, err = run("launch", _write(tmp_path, trials=7, seed=3), *PLACE)
    assert code == 2
    assert "they differ in seed, trials" in err.replace("workers, ", "")
    for way in ("another name", "tuner resume", "tuner stop --delete"):
        assert way in err
    cluster = tmp_path / "cluster.yaml"
    preset = ROOT / "tuner/launch/kubernetes/presets/local.yaml"
    cluster.write_text(preset.read_text().replace("tuner:0.1.0", "tuner:0.1.1"))
    code, _, err = run("launch", _write(tmp_path), "--cluster", str(cluster))
    assert code == 2
    assert "what the cluster gives it is not" in err


def test_a_rayjob_that_is_not_ours_is_left_alone(
    run: Run, fake: FakeKubernetes, study: str
) -> None:
    foreign = {"metadata": {"name": NAME}, "spec": {}}
    fake.store.create("rayjobs", "tuner", foreign, False)
    code, _, err = run("launch", study, *PLACE)
    assert code == 2
    assert "not of tuner" in err
    assert run("stop", NAME, *PLACE, "--delete")[0] == 2
    assert _left(fake) == [f"rayjobs/{NAME}"]


def test_a_launch_that_was_cut_short_is_completed_by_the_next(
    run: Run, fake: FakeKubernetes, study: str
) -> None:
    left = {
        "metadata": {"name": NAME, "labels": {"tuner/study": NAME}},
        "data": {"study.yaml": "old", "old.yaml": "old"},
    }
    fake.store.create("configmaps", "tuner", left, False)
    assert run("launch", study, *PLACE, "--detach")[0] == 0
    files = fake.store.get("configmaps", "tuner", NAME)
    assert list(files["data"]) == ["study.yaml"]
    assert files["metadata"]["ownerReferences"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"storage": "postgresql://me:hush@db/x"}, "storage: must not be set"),
        ({"workers": 400}, "400 are asked for"),
        ({"space": "lorra"}, "Did you mean 'lora'"),
        ({"general": "/home/me/text.jsonl"}, "does not see the files of this machine"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_asked(
    values: dict[str, Any], words: str, run: Run, fake: FakeKubernetes, tmp_path: Path
) -> None:
    code, _, err = run("launch", _write(tmp_path, **values), *PLACE)
    assert code == 2
    assert words in err
    assert "hush" not in err
    assert not fake.requests


def test_what_kubernetes_refuses_leaves_nothing(run: Run, fake: FakeKubernetes, study: str) -> None:
    fake.quota = "exceeded quota: jobs, requested: count/rayjobs=1, used: 3, limited: 3"
    code, _, err = run("launch", study, *PLACE)
    assert code == 1
    assert "exceeded quota: jobs" in err
    assert _left(fake) == []


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("no gpu", "2 workers: 2 of 5 nodes have the taint dedicated: web, which the pod"),
        ("no gpu", "no nvidia.com/gpu free (3 of 5 nodes)"),
        ("forbidden head", 'pod forbidden by PodSecurity "restricted:latest": allowPrivilege'),
        ("forbidden submitter", "the quota compute of the namespace is used up: cpu=4 asked for"),
        ("quota", "the quota compute of the namespace is used up: cpu=4 asked for, cpu=14 used"),
        ("no image", "the head: the image tuner:0.1.0 cannot be pulled"),
        ("no secret", 'something that ray-head needs is absent (secret "tuner-ledger" not found)'),
        ("no disk", "the head: MountVolume.SetUp failed for volume studies"),
        ("silent", "the cluster starts"),
        ("never taken up", "KubeRay's operator has not taken it up yet"),
    ],
)
def test_what_holds_a_study_up_is_said(
    scenario: str, words: str, run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing(scenario):
        assert run("launch", study, *PLACE, "--detach")[0] == 0

        def said() -> bool:
            code, out, _ = run("status", NAME, *PLACE)
            assert code == 0
            return words in out

        _until(said)
        told = json.loads(run("status", NAME, *PLACE, "--json")[1])
    assert words in " ".join([told["words"], *told["reasons"]])


class _Notes:
    """Notes what a follower is told, and acts once it hears what it waits for."""

    def __init__(self, awaited: str, act: Callable[[], None], heard: list[str]) -> None:
        self.heard = heard
        self._awaited = awaited
        self._act = act

    def changed(self, study: LaunchedStudy) -> None:
        self._hear(study.words, *study.reasons)

    def said(self, line: str) -> None:
        self._hear(line)

    def troubled(self, words: str | None) -> None:
        self._hear(words or "back")

    def _hear(self, *words: str) -> None:
        new = any(self._awaited in one for one in words)
        known = any(self._awaited in one for one in self.heard)
        self.heard += words
        if new and not known:
            self._act()


def _followed(
    awaited: str, act: Callable[[], None], heard: list[str] | None = None
) -> tuple[LaunchedStudy, list[str]]:
    """Follow the study; act once something is heard."""
    notes = _Notes(awaited, act, [] if heard is None else heard)

    async def run_() -> LaunchedStudy:
        async with connect("tuner") as api:
            return await follow(api, NAME, notes)

    return asyncio.run(run_()), notes.heard


def test_a_reason_is_shown_while_one_follows_and_goes_when_it_is_over(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("no gpu") as kuberay:
        run("launch", study, *PLACE, "--detach")
        last, heard = _followed("no nvidia.com/gpu free", lambda: kuberay.release())
    assert last.succeeded
    assert last.reasons == ()
    assert any("no nvidia.com/gpu free" in words for words in heard)


def test_a_lost_connection_and_a_forgotten_past_are_overcome(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    def disturb() -> None:
        fake.store.forget()
        fake.cut()

    told: list[str] = []
    with playing("running") as kuberay:
        run("launch", study, *PLACE, "--detach")
        with _soon(kuberay.release, lambda: "back" in told):
            last, _ = _followed("Searching", disturb, told)
    assert last.succeeded
    assert any("cannot be reached" in words for words in told)
    assert told.count("Searching · 0/2 trials done") == 1


@pytest.mark.parametrize(
    ("scenario", "state", "words"),
    [
        ("refused", "refused", "refused by KubeRay's operator: The RayJob spec is invalid"),
        ("late", "failed", "did not start within `start_deadline_s`"),
        ("failure", "failed", "failed with exit code 2"),
        ("stopped in Ray", "failed", "the search was stopped within Ray"),
    ],
)
def test_every_bad_end_is_recognised(
    scenario: str,
    state: str,
    words: str,
    run: Run,
    fake: FakeKubernetes,
    study: str,
    playing: Playing,
) -> None:
    with playing(scenario):
        code, out, err = run("launch", study, *PLACE, "--json")
    assert code == 1
    assert words in err
    assert json.loads(out)["state"] == state
    if scenario == "late":
        assert any("no node has cpu free" in one for one in json.loads(out)["reasons"])


def test_a_lost_attempt_is_told_and_the_logs_go_on_over_it(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("retry") as kuberay:
        assert run("launch", study, *PLACE, "--detach")[0] == 0
        last, heard = _followed("Searching", kuberay.release)
        assert last.succeeded
        assert heard.index("Searching · 1/2 trials done") < heard.index(
            "Continuing from the ledger"
        )
        code, out, _ = run("logs", NAME, *PLACE)
        assert code == 0
        assert out.splitlines() == ["Continuing from the ledger", "Finished"]
        told = json.loads(run("status", NAME, *PLACE, "--json")[1])
    assert told["lost_attempts"] == 1


def test_ctrl_c_leaves_the_study_running(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    # Ignored where a shell has started the tests in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with playing("running"), _soon(interrupt, lambda: _status(fake) == "Running"):
        code, _, err = run("launch", study, *PLACE)
        assert code == 130
        assert f"tuner status {NAME} --cluster local --follow" in err
        assert _status(fake) == "Running"
    signal.signal(signal.SIGINT, before)


def test_a_study_is_stopped_and_resumed(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("running") as kuberay:
        run("launch", study, *PLACE, "--detach")
        _until(lambda: _status(fake) == "Running")
        code, out, _ = run("stop", NAME, *PLACE, "--json")
        assert code == 0
        assert json.loads(out) == {"study": NAME, "stopped": True, "state": "stopped"}
        assert not fake.store.list("pods", "tuner")
        code, _, err = run("launch", study, *PLACE)
        assert code == 1  # launching does not resume
        assert "tuner resume" in err
        kuberay.release()
        code, _, err = run("resume", NAME, *PLACE)
        assert code == 0
        assert "goes on" in err
        assert "completed" in err
    assert _posts(fake, "/rayjobs") == 1


def test_relative_files_are_taken_from_where_each_command_is_given(
    run: Run,
    fake: FakeKubernetes,
    tmp_path: Path,
    playing: Playing,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, elsewhere = tmp_path / "mein Gerät", tmp_path / "anderswo"
    there.mkdir()
    elsewhere.mkdir()
    _write(there)
    preset = ROOT / "tuner/launch/kubernetes/presets/local.yaml"
    (there / "Cluster eins.yaml").write_text(preset.read_text())
    (there / "config").write_bytes((tmp_path / "config").read_bytes())
    monkeypatch.chdir(there)
    monkeypatch.setenv("KUBECONFIG", "../mein Gerät/config")
    with playing("running") as kuberay:
        place = ("--cluster", "Cluster eins.yaml")
        assert run("launch", "study.yaml", *place, "--detach")[0] == 0
        _until(lambda: _status(fake) == "Running")
        monkeypatch.chdir(elsewhere)
        place = ("--cluster", "../mein Gerät/Cluster eins.yaml")
        code, out, err = run("logs", NAME, *place)
        assert (code, out) == (0, "Searching · 0/2 trials done\n"), err
        assert run("stop", NAME, *place)[0] == 0
        kuberay.release()
        code, _, err = run("resume", NAME, *place)
        assert code == 0, err
        assert "goes on" in err
    assert run("status", NAME, *place)[0] == 0


def test_a_study_that_has_ended_is_resumed_under_its_name(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("failure") as kuberay:
        assert run("launch", study, *PLACE)[0] == 1
        first = fake.store.get("rayjobs", "tuner", NAME)
        code, out, _ = run("stop", NAME, *PLACE)
        assert code == 0
        assert "has ended already" in out
        kuberay.scenario = "completion"
        code, _, err = run("resume", NAME, *PLACE)
    assert code == 0
    assert "a-study: completed" in err
    second = fake.store.get("rayjobs", "tuner", NAME)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["metadata"]["annotations"] == first["metadata"]["annotations"]
    assert second["spec"] == {**first["spec"], "suspend": False}
    files = fake.store.get("configmaps", "tuner", NAME)
    assert files["metadata"]["ownerReferences"][0]["uid"] == second["metadata"]["uid"]


def test_a_running_study_is_not_resumed_again(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("running"):
        run("launch", study, *PLACE, "--detach")
        _until(lambda: _status(fake) == "Running")
        code, _, err = run("resume", NAME, *PLACE, "--detach")
    assert code == 0
    assert "runs already" in err


@pytest.mark.parametrize("scenario", ["running", "completion", "forbidden head", "refused"])
def test_nothing_is_left_of_a_study_that_is_taken_away(
    scenario: str, run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    other = {"metadata": {"name": "other"}, "data": {"a": "1"}}
    fake.store.create("configmaps", "tuner", other, False)
    with playing(scenario):
        run("launch", study, *PLACE, "--detach")
        _until(lambda: _status(fake) not in ("", "Initializing") or scenario == "forbidden head")
        code, out, _ = run("stop", NAME, *PLACE, "--delete", "--json")
        assert code == 0
        assert json.loads(out) == {"study": NAME, "deleted": True}
        assert _left(fake) == ["configmaps/other"]
        code, _, err = run("status", NAME, *PLACE)
        assert code == 2
        assert "No study in the namespace tuner is called" in err


def test_what_does_not_go_is_named(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    with playing("running"):
        run("launch", study, *PLACE, "--detach")
        _until(lambda: _status(fake) == "Running")
    # Now without an operator, whose finalizer holds the RayJob.
    code, _, err = run("stop", NAME, *PLACE, "--delete", "--wait", "0.5")
    assert code == 1
    assert "still there: RayJob a-study" in err.replace("ConfigMap a-study, ", "")
    assert "is KubeRay's operator running?" in err


def test_a_follower_hears_that_the_study_was_taken_away(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    def take_away() -> None:
        fake.store.delete("rayjobs", "tuner", NAME, "Foreground")

    with playing("running"), _soon(take_away, lambda: _status(fake) == "Running"):
        code, _, err = run("launch", study, *PLACE)
    assert code == 1
    assert "deleted; its trials are in the ledger" in err


def test_studies_are_listed_and_found_by_either_name(
    run: Run, fake: FakeKubernetes, tmp_path: Path
) -> None:
    run("launch", _write(tmp_path, name="My_Study"), *PLACE, "--detach")
    run("launch", _write(tmp_path), *PLACE, "--detach")
    code, out, _ = run("status", *PLACE)
    assert code == 0
    assert "My_Study" in out
    listed = json.loads(run("status", *PLACE, "--json")[1])
    assert [one["study"] for one in listed] == ["a-study", "My_Study"]
    for name in ("My_Study", listed[1]["name"]):
        assert json.loads(run("status", name, *PLACE, "--json")[1])["study"] == "My_Study"
    code, _, err = run("status", "a-studi", *PLACE)
    assert code == 2
    assert "Did you mean 'a-study'" in err


def test_logs_of_every_part(run: Run, fake: FakeKubernetes, study: str, playing: Playing) -> None:
    with playing("running"):
        code, _, err = run("logs", NAME, *PLACE)
        assert code == 2
        run("launch", study, *PLACE, "--detach")
        _until(lambda: _status(fake) == "Running")
        assert run("logs", NAME, *PLACE)[1] == "Searching · 0/2 trials done\n"
        assert run("logs", NAME, *PLACE, "--of", "head")[1] == "Ray runtime started.\n"
        code, out, _ = run("logs", NAME, *PLACE, "--tail", "0", "--json")
        assert json.loads(out) == {"study": NAME, "of": "driver", "lines": []}
        code, _, err = run("logs", NAME, *PLACE, "--of", "autoscaler")
        assert code == 1
        assert "has written nothing yet" in err
        code, _, err = run("logs", NAME, *PLACE, "--of", "heads")
        assert code == 2
        assert "Did you mean 'head'" in err


def test_logs_follow_to_the_end_without_a_line_twice(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    def disturb() -> None:
        fake.cut()
        time.sleep(0.1)
        kuberay.release()

    def reading() -> bool:
        return any("follow" in query for _, path, query in fake.requests)

    with playing("running") as kuberay, _soon(disturb, reading):
        run("launch", study, *PLACE, "--detach")
        code, out, _ = run("logs", NAME, *PLACE, "--follow")
    assert code == 0
    assert out.splitlines() == ["Searching · 0/2 trials done", "Finished"]


def test_a_queued_study_is_put_aside_and_let_in_by_kueue(
    run: Run, fake: FakeKubernetes, study: str
) -> None:
    place = ("--cluster", "existing-kuberay")
    run("launch", study, *place, "--detach")
    assert json.loads(run("status", NAME, *place, "--json")[1])["state"] == "queued"
    code, _, err = run("stop", NAME, *place)
    assert code == 1
    assert "Is Kueue installed?" in err
    uid = fake.store.get("rayjobs", "tuner", NAME)["metadata"]["uid"]
    workload = {
        "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": uid}},
        "spec": {"active": True},
    }
    fake.store.create("workloads", "tuner", workload, False)
    assert run("stop", NAME, *place)[0] == 0
    assert fake.store.get("workloads", "tuner", "w")["spec"]["active"] is False
    assert run("resume", NAME, *place, "--detach")[0] == 0
    assert fake.store.get("workloads", "tuner", "w")["spec"]["active"] is True
    assert fake.store.get("rayjobs", "tuner", NAME)["spec"]["suspend"] is True


def test_without_the_right_to_read_events_a_study_is_followed_all_the_same(
    run: Run, fake: FakeKubernetes, study: str, playing: Playing
) -> None:
    fake.forbidden |= {("list", "events"), ("list", "secrets")}
    with playing("completion"):
        code, _, err = run("launch", study, *PLACE)
        assert code == 0
        assert "completed" in err
        assert run("stop", NAME, *PLACE, "--delete")[0] == 0


def _refuse(fake: FakeKubernetes, how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cluster unusable in one of many ways."""
    match how:
        case "no kubeconfig":
            monkeypatch.setenv("KUBECONFIG", str(folder / "nowhere"))
        case "no client":
            monkeypatch.setitem(sys.modules, "kubernetes.aio", None)
        case "no YAML":
            (folder / "config").write_text("{")
        case "empty":
            (folder / "config").write_text("")
        case "nobody there":
            fake.write_kubeconfig(folder / "config", gone="http://127.0.0.1:9")
        case "unknown":
            fake.token = "hush"
        case "forbidden":
            fake.forbidden |= {("create", "rayjobs")}
        case "no KubeRay":
            fake.absent_groups |= {"ray.io"}
        case "no namespace":
            fake.store.namespaces.clear()


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("no client", 2, "pip install 'tuner[launch]'"),
        ("no kubeconfig", 2, "There is no Kubernetes cluster to talk to"),
        ("no YAML", 2, "does not lead to a Kubernetes cluster"),
        ("empty", 2, "does not lead to a Kubernetes cluster"),
        ("nobody there", 1, "127.0.0.1:9 cannot be reached"),
        ("unknown", 1, "does not know you"),
        ("forbidden", 1, "does not let you create the RayJob a-study"),
        ("no KubeRay", 1, "helm install kuberay-operator"),
        ("no namespace", 2, "The cluster has no namespace tuner"),
    ],
)
def test_a_cluster_that_does_not_answer_is_told_in_words(
    how: str,
    code: int,
    words: str,
    run: Run,
    fake: FakeKubernetes,
    study: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _refuse(fake, how, tmp_path, monkeypatch)
    found, _, err = run("launch", study, *PLACE)
    assert found == code
    assert words in err
    assert "hush" not in err
    assert _left(fake) == []


def test_the_context_is_chosen_and_an_unknown_one_refused(
    run: Run, fake: FakeKubernetes, tmp_path: Path, study: str
) -> None:
    fake.write_kubeconfig(tmp_path / "config", gone="http://127.0.0.1:9", fake=fake.url)
    assert run("status", *PLACE)[0] == 1
    assert run("status", *PLACE, "--context", "fake")[0] == 0
    code, _, err = run("status", *PLACE, "--context", "fkae")
    assert code == 2
    assert "Did you mean 'fake'" in err


def test_delete_is_for_clusters_only(run: Run) -> None:
    code, _, err = run("stop", NAME, "--delete")
    assert code == 2
    assert "--cluster" in err
