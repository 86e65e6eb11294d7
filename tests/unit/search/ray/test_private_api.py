"""Ray still has what tuner uses of it beyond its public API: an upgrade may fail here."""

import importlib
import inspect
import io
import re
import sys

import pytest
import ray
from ray._private import node, ray_constants, services, worker

from tests.support.clone import ROOT
from tuner.launch.ray import job_client
from tuner.search.ray import private_api


def test_private_names_of_ray_are_in_one_file_of_the_package() -> None:
    users = {
        str(path.relative_to(ROOT / "tuner"))
        for path in (ROOT / "tuner").rglob("*.py")
        if re.search(
            r"\bray\._(private|raylet)|_global_node|ray_constants", path.read_text(encoding="utf-8")
        )
    }
    # The second names a logger.
    assert users == {"search/ray/private_api.py", "launch/ray/job_client.py"}


def test_the_processes_that_matter_are_called_as_they_were() -> None:
    assert private_api.VITAL == ("raylet", "gcs_server")


def test_a_process_without_ray_has_a_node_variable_that_is_empty() -> None:
    assert not ray.is_initialized()
    assert worker._global_node is None
    assert private_api.ended_processes() == []


def test_a_node_tells_its_address_and_its_ended_processes_with_their_codes() -> None:
    assert isinstance(node.Node.node_ip_address, property)
    assert callable(node.Node.dead_processes)
    source = inspect.getsource(node.Node.dead_processes)
    assert "result.append((process_type, process_info.process))" in source


def test_ray_takes_the_loopback_address_while_it_may_not_form_a_cluster() -> None:
    assert isinstance(ray_constants.ENABLE_RAY_CLUSTER, bool)
    before = ray_constants.ENABLE_RAY_CLUSTER
    with private_api.on_loopback():
        assert services.get_node_ip_address() in ("127.0.0.1", "::1")
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_ray_prints_what_workers_say_by_the_function_that_is_silenced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    printer = worker.print_to_stdstream
    assert list(inspect.signature(printer).parameters)[:1] == ["data"]
    # The module's other functions find it by this name.
    assert re.search(r"(?<!def )print_to_stdstream", inspect.getsource(worker))
    with private_api.worker_deaths_unprinted():
        assert worker.print_to_stdstream is not printer
        worker.print_to_stdstream({"lines": ["a worker died"], "is_err": True}, False)
    assert worker.print_to_stdstream is printer
    assert terminal.getvalue() == ""


def test_init_takes_what_is_not_documented() -> None:
    source = inspect.getsource(inspect.unwrap(ray.init))
    for name in ("_node_ip_address", "_temp_dir", "_system_config"):
        assert f'"{name}"' in source


def test_the_loggers_that_are_quieted_are_modules_of_ray() -> None:
    for name in job_client._NOISY:
        module = importlib.import_module(name)
        assert module.__name__ == name
