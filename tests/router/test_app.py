import logging

import pytest
from isthmus.router.app import create_app
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import ask, saying, served


def test_health_follows_the_core():
    core = FakeCore()
    assert ask(core, "GET", "/health").status_code == 200
    core.ready = False
    reply = ask(core, "GET", "/health")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
    assert ask(core, "GET", "/ping").status_code == 200


def test_version_and_metrics():
    assert ask(FakeCore(), "GET", "/version").json() == {"version": "0.1.0"}
    reply = ask(FakeCore(), "GET", "/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "isthmus:num_requests_running 0\n" in reply.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("GET", "/api/v1/nothing", 404),
        ("PUT", "/api/v1/generate", 405),
    ],
)
def test_unknown_paths_and_methods_have_the_apis_error_shape(method, path, status):
    reply = ask(FakeCore(), method, path)
    assert reply.status_code == status
    message = reply.json()["detail"]["msg"] if path.startswith("/api") else reply.json()["error"]["message"]
    assert path in message
    assert ("allow" in reply.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate"])
def test_a_bug_is_a_500_that_says_nothing(path, caplog):
    def script(job, choice):
        yield job.prompt_ids[0]
        raise ZeroDivisionError("secret")

    reply = ask(FakeCore(script), "POST", path, json={"prompt": "x"}, headers={"X-Request-Id": "abc"})
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "internal error" in reply.text
    assert reply.headers["x-request-id"] == "abc"
    assert "abc: internal error" in caplog.text


def test_a_request_id_is_echoed_logged_and_given_to_the_job(caplog):
    caplog.set_level(logging.INFO, "isthmus.router")
    core = saying("hi")
    reply = ask(core, "POST", "/v1/completions", json={"prompt": "x"}, headers={"X-Request-Id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    assert reply.json()["id"] == "cmpl-mine-1"
    assert core.streams[0].job.request_id == "mine-1"
    assert "request mine-1: POST /v1/completions 200, 1 + 3 tokens, stop; queue 0" in caplog.text
    caplog.clear()
    refused = ask(core, "POST", "/v1/completions", json={}, headers={"X-Request-Id": "mine-2"})
    assert refused.headers["x-request-id"] == "mine-2"
    assert "mine-2: 400 'prompt: missing'" in caplog.text


ID_BODIES = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/embeddings": {"input": "x"},
    "/v1/score": {"text_1": "x", "text_2": "y"},
    "/v1/rerank": {"query": "x", "documents": ["y"]},
}


@pytest.mark.parametrize("header", [None, "mine-2", "not\tone"])
@pytest.mark.parametrize("path", ID_BODIES)
def test_a_body_may_have_the_requests_id(path, header, caplog):
    caplog.set_level(logging.INFO, "isthmus.router")
    core = saying("hi")
    headers = {"X-Request-Id": header} if header else {}
    reply = ask(core, "POST", path, json={**ID_BODIES[path], "request_id": "mine-2"}, headers=headers)
    assert (reply.status_code, reply.headers["x-request-id"]) == (200, "mine-2")
    assert {stream.job.request_id for stream in core.streams} == {"mine-2"}
    assert reply.json().get("id", "mine-2").endswith("mine-2")
    assert "mine-2: " in caplog.text


@pytest.mark.parametrize("path", ID_BODIES)
@pytest.mark.parametrize("given", ["", "a" * 129, "né", "a\n", 5])
def test_a_bodys_id_that_cannot_be_one_is_refused(path, given):
    core = saying("hi")
    reply = ask(core, "POST", path, json={**ID_BODIES[path], "request_id": given})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "request_id")
    assert not core.streams


@pytest.mark.parametrize("path", ID_BODIES)
def test_two_ids_of_one_request_are_refused(path):
    core = saying("hi")
    body = {**ID_BODIES[path], "request_id": "mine-2"}
    reply = ask(core, "POST", path, json=body, headers={"X-Request-Id": "mine-1"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (400, "mine-1")
    assert reply.json()["error"]["message"] == "request_id: contradicts the header X-Request-Id"
    assert not core.streams


@pytest.mark.parametrize("given", [None, "", "x" * 129, "caf\u00e9"])
def test_a_request_without_a_usable_id_gets_one(given):
    headers = {} if given is None else {"X-Request-Id": given.encode("latin-1")}
    made = ask(FakeCore(), "GET", "/ping", headers=headers).headers["x-request-id"]
    assert len(made) == 32
    assert int(made, 16) >= 0


def test_openapi_describes_the_bodies():
    paths = create_app(FakeCore(), served()).openapi()["paths"]
    for path, field in (
        ("/v1/completions", "prompt"),
        ("/v1/chat/completions", "messages"),
        ("/api/v1/generate", "memory"),
        ("/api/extra/generate/stream", "genkey"),
    ):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert field in schema["properties"]
        assert schema["properties"]["top_p"]["maximum"] == 1
        assert "$ref" not in str(schema)
