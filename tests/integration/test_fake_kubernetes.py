"""What the fake API promises, as a real server keeps it.

With TUNER_TEST_KUBECONFIG (and TUNER_TEST_NAMESPACE) set, the same is asked of that cluster, which
must have KubeRay; what only a fake can be told to do is left out then.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client, config

from tests.support.fake_kubernetes import FakeKubernetes

REAL = os.environ.get("TUNER_TEST_KUBECONFIG")
NAMESPACE = os.environ.get("TUNER_TEST_NAMESPACE", "tuner")
JOBS = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayjobs"
MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

Answer = tuple[int, dict[str, Any]]
only_fake = pytest.mark.skipif(REAL is not None, reason="a real server cannot be told to do this")


class Wire:
    """Requests as they go over the wire."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def _send(
        self, method: str, path: str, query: dict[str, str], body: Any, content: str
    ) -> Any:
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        return (await self._api.call_api(*request)).response

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: str = "application/json",
        **query: str,
    ) -> Answer:
        response = await self._send(method, path, query, body, content)
        return response.status, json.loads(await response.read())

    async def watch(self, path: str, **query: str) -> AsyncIterator[dict[str, Any]]:
        response = await self._send("GET", path, {"watch": "true", **query}, None, "*/*")
        with contextlib.closing(response):
            if response.status != 200:
                yield {"type": "ERROR", "object": json.loads(await response.read())}
                return
            async for line in response.content:
                yield json.loads(line)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeKubernetes | None]:
    if REAL is not None:
        yield None
        return
    with FakeKubernetes(NAMESPACE) as fake:
        yield fake


Ask = Callable[[Callable[[Wire], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def ask(fake: FakeKubernetes | None, tmp_path: Path) -> Ask:
    """Run a test's requests; afterwards nothing of it is left."""
    path = REAL or str(fake.write_kubeconfig(tmp_path / "config") if fake else "")

    async def run(test: Callable[[Wire], Coroutine[Any, Any, None]]) -> None:
        settings = client.Configuration()
        await config.load_kube_config(config_file=path, client_configuration=settings)
        async with client.ApiClient(settings) as api:
            wire = Wire(api)
            try:
                await test(wire)
            finally:
                for path_, name in ((JOBS, "contract"), (MAPS, "contract"), (MAPS, "owned")):
                    await wire("DELETE", f"{path_}/{name}")

    return lambda test: asyncio.run(run(test))


def job(name: str = "contract", **spec: Any) -> dict[str, Any]:
    """A RayJob that no operator starts."""
    container = {"name": "ray-head", "image": "tuner:0.1.0"}
    head = {"rayStartParams": {}, "template": {"spec": {"containers": [container]}}}
    basis = {
        "entrypoint": "true",
        "suspend": True,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": {"headGroupSpec": head},
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": {"tuner/study": name}},
        "spec": {**basis, **spec},
    }


def files(name: str = "contract", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"tuner/study": "contract"}, **metadata},
        "data": {"a": "1", "b": "2"},
    }


def test_what_was_made_can_be_read_and_has_an_identity(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        status, made = await wire("POST", JOBS, job())
        assert status == 201
        assert made["metadata"]["uid"]
        assert made["metadata"]["resourceVersion"].isdigit()
        status, read = await wire("GET", f"{JOBS}/contract")
        assert status == 200
        assert (read["kind"], read["apiVersion"]) == ("RayJob", "ray.io/v1")
        assert read["metadata"]["uid"] == made["metadata"]["uid"]

    ask(test)


def test_a_second_one_of_the_name_is_a_conflict(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", JOBS, job())
        status, answer = await wire("POST", JOBS, job())
        assert (status, answer["kind"], answer["reason"]) == (409, "Status", "AlreadyExists")

    ask(test)


def test_a_stale_version_is_a_conflict(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        _, made = await wire("POST", MAPS, files())
        assert (await wire("PATCH", f"{MAPS}/contract", {"data": {"a": "3"}}, MERGE))[0] == 200
        status, answer = await wire("PUT", f"{MAPS}/contract", made)
        assert (status, answer["reason"]) == (409, "Conflict")

    ask(test)


def test_an_unknown_field_is_refused_where_one_asks_for_it(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        status, answer = await wire("POST", JOBS, job(entrypiont="x"), fieldValidation="Strict")
        assert status == 400
        assert 'unknown field "spec.entrypiont"' in answer["message"]
        assert "strict decoding error" in answer["message"]
        status, made = await wire("POST", JOBS, job(entrypiont="x"))
        assert status == 201
        assert "entrypiont" not in made["spec"]

    ask(test)


@pytest.mark.parametrize(
    "manifest", [job(suspend="yes"), job("Contract"), job("x" * 254), job(backoffLimit="3")]
)
def test_what_is_not_valid_is_refused(manifest: dict[str, Any], ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        status, answer = await wire("POST", JOBS, manifest)
        assert (status, answer["reason"]) == (422, "Invalid")

    ask(test)


def test_what_must_not_change_does_not(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", JOBS, job(managedBy="ray.io/kuberay-operator"))
        change = {"spec": {"managedBy": "kueue.x-k8s.io/multikueue"}}
        status, answer = await wire("PATCH", f"{JOBS}/contract", change, MERGE)
        assert (status, answer["reason"]) == (422, "Invalid")
        assert "immutable" in answer["message"]

    ask(test)


def test_a_merge_patch_changes_removes_and_keeps(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", MAPS, files())
        _, now = await wire("PATCH", f"{MAPS}/contract", {"data": {"a": None, "c": "3"}}, MERGE)
        assert now["data"] == {"b": "2", "c": "3"}

    ask(test)


def test_a_custom_resource_takes_no_strategic_patch(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", JOBS, job())
        status, answer = await wire("PATCH", f"{JOBS}/contract", {"spec": {}}, STRATEGIC)
        assert (status, answer["reason"]) == (415, "UnsupportedMediaType")

    ask(test)


def test_status_is_written_apart_from_what_is_asked_for(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        asked = {**job(), "status": {"jobDeploymentStatus": "Complete"}}
        _, made = await wire("POST", JOBS, asked)
        assert "jobDeploymentStatus" not in made.get("status", {})
        status = {"status": {"message": "by hand"}, "spec": {"entrypoint": "false"}}
        _, told = await wire("PATCH", f"{JOBS}/contract/status", status, MERGE)
        assert told["status"]["message"] == "by hand"
        assert told["spec"]["entrypoint"] == "true"
        _, after = await wire("PATCH", f"{JOBS}/contract", status, MERGE)
        assert after["spec"]["entrypoint"] == "false"

    ask(test)


def test_lists_are_chosen_by_label_and_name(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", MAPS, files())
        await wire("POST", MAPS, files("owned", labels={"tuner/study": "other"}))
        for query, names in (
            ({"labelSelector": "tuner/study=contract"}, ["contract"]),
            ({"labelSelector": "tuner/study"}, ["contract", "owned"]),
            ({"labelSelector": "tuner/study,none"}, []),
            ({"fieldSelector": "metadata.name=owned"}, ["owned"]),
        ):
            status, found = await wire("GET", MAPS, **query)
            assert status == 200
            assert [one["metadata"]["name"] for one in found["items"]] == names
            assert found["metadata"]["resourceVersion"].isdigit()

    ask(test)


def test_a_watch_tells_what_happens_after_a_list(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", MAPS, files())
        _, found = await wire("GET", MAPS)
        await wire("PATCH", f"{MAPS}/contract", {"data": {"a": "3"}}, MERGE)
        await wire("POST", MAPS, files("owned"))
        await wire("DELETE", f"{MAPS}/owned")
        told = [
            (event["type"], event["object"]["metadata"]["name"])
            async for event in wire.watch(
                MAPS,
                resourceVersion=found["metadata"]["resourceVersion"],
                labelSelector="tuner/study",
                timeoutSeconds="1",
            )
        ]
        assert ("MODIFIED", "contract") in told
        assert told.index(("ADDED", "owned")) < told.index(("DELETED", "owned"))

    ask(test)


def test_what_is_owned_goes_with_its_owner(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        _, owner = await wire("POST", MAPS, files())
        reference = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "name": "contract",
            "uid": owner["metadata"]["uid"],
        }
        await wire("POST", MAPS, files("owned", ownerReferences=[reference]))
        await wire("DELETE", f"{MAPS}/contract", {"propagationPolicy": "Foreground"})
        for _ in range(100):
            if (await wire("GET", f"{MAPS}/owned"))[0] == 404:
                break
            await asyncio.sleep(0.1)
        assert (await wire("GET", f"{MAPS}/owned"))[0] == 404
        assert (await wire("GET", f"{MAPS}/contract"))[0] == 404

    ask(test)


def test_a_finalizer_holds_an_object_until_it_is_taken_off(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", MAPS, files(finalizers=["tuner/held"]))
        await wire("DELETE", f"{MAPS}/contract")
        status, held = await wire("GET", f"{MAPS}/contract")
        assert status == 200
        assert held["metadata"]["deletionTimestamp"]
        await wire("PATCH", f"{MAPS}/contract", {"metadata": {"finalizers": None}}, MERGE)
        assert (await wire("GET", f"{MAPS}/contract"))[0] == 404

    ask(test)


def test_nothing_is_made_in_a_namespace_that_is_not_there(ask: Ask) -> None:
    async def test(wire: Wire) -> None:
        status, answer = await wire("POST", "/api/v1/namespaces/nowhere/configmaps", files())
        assert (status, answer["details"]["kind"]) == (404, "namespaces")
        status, found = await wire("GET", "/api/v1/namespaces/nowhere/configmaps")
        assert (status, found["items"]) == (200, [])

    ask(test)


@only_fake
def test_a_watch_from_what_is_forgotten_has_expired(ask: Ask, fake: FakeKubernetes) -> None:
    async def test(wire: Wire) -> None:
        await wire("POST", MAPS, files())
        fake.store.forget()
        (event,) = [event async for event in wire.watch(MAPS, resourceVersion="1")]
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)

    ask(test)


@only_fake
def test_bookmarks_say_how_far_a_watch_has_come(ask: Ask, fake: FakeKubernetes) -> None:
    async def test(wire: Wire) -> None:
        query = {"resourceVersion": str(fake.store.version), "timeoutSeconds": "1"}
        told = [event async for event in wire.watch(MAPS, allowWatchBookmarks="true", **query)]
        assert {event["type"] for event in told} == {"BOOKMARK"}
        assert not [event async for event in wire.watch(MAPS, **query)]

    ask(test)
