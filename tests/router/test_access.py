"""Keys and limits at the router's edge."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from isthmus.router.access import OPEN_FOLDERS, OPEN_PATHS, Access
from isthmus.router.api_keys import Limits, make_key
from isthmus.router.app import create_app
from isthmus.router.cors import ANY_SITE, Cors
from isthmus.router.fake_core import FakeCore
from isthmus.router.key_file import KeyFile, parse_keys
from isthmus.router.token_bucket import TokenBucket
from isthmus.tests.router.edge import saying, served

KEYS = (make_key("sk-alice", "alice"), make_key("sk-bob", "bob", Limits(2, 1)), make_key("sk-root", "root", admin=True))
BODY = {"prompt": "x"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def client(core: FakeCore, access: Access | None = None, cors: Cors = ANY_SITE) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(core, served(), access, cors), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def answers(access: Access | None, *requests: tuple[str, str, dict[str, Any]], cors: Cors = ANY_SITE) -> list[Any]:
    """The answers of one router, in turn."""

    async def run() -> list[httpx.Response]:
        async with client(saying("ok"), access, cors) as asking:
            return [await asking.request(method, path, **how) for method, path, how in requests]

    return asyncio.run(run())


def routes(router: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Method and path of every route, those of included routers too."""
    found = []
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            found += routes(inner, prefix)
        elif getattr(route, "path", None):
            mounted = not hasattr(route, "methods")  # a folder of files
            found += (
                [("GET", f"{prefix}{route.path}/")] if mounted else [(m, prefix + route.path) for m in route.methods]
            )
    return found


ROUTES = sorted({(m, p.replace("{model:path}", "tiny").replace("{name}", "decode-0")) for m, p in
                 routes(create_app(FakeCore(), served()))})  # fmt: skip
PAGES = ("/admin/", *OPEN_FOLDERS)
GUARDED = [(method, path) for method, path in ROUTES if path not in OPEN_PATHS and not path.startswith(PAGES)]


def test_the_walk_finds_the_routes() -> None:
    described = create_app(FakeCore(), served()).openapi()["paths"]
    assert {path for _, path in ROUTES} >= {path for path in described if "{" not in path}
    assert {"/v1/models", "/v1/chat/completions", "/api/latest/generate", "/metrics"} <= {path for _, path in GUARDED}


def test_every_data_route_is_401_without_a_key_and_works_with_one() -> None:
    variants = [(m, p + tail) for m, p in GUARDED for tail in ("", "/")] + [("HEAD", p) for _, p in GUARDED]
    variants += [(m, p.replace("/v1/", "//v1/")) for m, p in GUARDED] + [("GET", "/nowhere"), ("PUT", "/v1/models")]
    wrong = [{}, bearer("sk-alic"), bearer(""), {"Authorization": "Basic sk-alice"}, {"X-API-Key": "sk-Alice"}]
    tried = [(*v, {"headers": h}) for v in variants for h in wrong[: len(wrong) if v in GUARDED else 1]]
    for (method, path, how), reply in zip(tried, answers(Access(KEYS), *tried), strict=True):
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer"), (method, path, how)
    right = [bearer("sk-alice"), {"Authorization": "bearer  sk-alice"}, {"X-API-Key": "sk-alice"}, bearer("sk-root")]
    right += [{**bearer("none"), "X-API-Key": "sk-bob"}]
    replies = answers(Access(KEYS), *((m, p, {"headers": right[i % 4]}) for i, (m, p) in enumerate(GUARDED)))
    assert not {reply.status_code for reply in replies} & {401, 403, 404, 405, 500}
    models = answers(Access(KEYS), *(("GET", "/v1/models", {"headers": headers}) for headers in right))
    assert {reply.status_code for reply in models} == {200}


def test_refusals_have_the_apis_shapes() -> None:
    openai, kobold = answers(Access(KEYS), ("GET", "/v1/models", {}), ("GET", "/api/v1/model", {}))
    assert openai.json()["error"]["type"] == "authentication_error"
    assert openai.json()["error"]["code"] == "invalid_api_key"
    assert kobold.json()["detail"]["type"] == "unauthorized"
    assert openai.headers["x-request-id"]


def test_what_shows_no_data_is_open() -> None:
    paths = sorted(OPEN_PATHS - {"/", "/ui"})
    assert {r.status_code for r in answers(Access(KEYS), *(("GET", path, {}) for path in paths))} == {200}


def test_without_keys_all_but_the_admins_routes_are_open() -> None:
    for access in (None, Access([make_key("sk-root", "root", admin=True)])):
        models, metrics, admin = answers(
            access, ("GET", "/v1/models", {}), ("GET", "/metrics", {}), ("POST", "/admin/keys/reload", {})
        )
        assert (models.status_code, metrics.status_code) == (200, 200)
        assert admin.status_code == (403 if access is None else 401)


def test_metrics_can_be_opened() -> None:
    assert answers(Access(KEYS, open_metrics=True), ("GET", "/metrics", {}))[0].status_code == 200


def test_kobold_clients_are_told_that_there_is_a_key() -> None:
    shown = [answers(a, ("GET", "/api/extra/version", {"headers": bearer("sk-bob")}))[0] for a in (None, Access(KEYS))]
    assert [reply.json()["protected"] for reply in shown] == [False, True]


def test_admin_routes_take_admin_keys_alone() -> None:
    drain = "/admin/workers/decode-0/drain"
    user, root, unknown = answers(
        Access(KEYS),
        ("POST", drain, {"headers": bearer("sk-alice")}),
        ("POST", drain, {"headers": bearer("sk-root")}),
        ("POST", "/admin/workers/d9/drain", {"headers": bearer("sk-root")}),
    )
    assert [user.status_code, root.status_code, unknown.status_code] == [403, 202, 404]


def test_a_key_has_its_rate_and_gets_it_back() -> None:
    clock = Clock()
    access = Access(KEYS, clock=clock)
    ask = ("POST", "/v1/completions", {"json": BODY, "headers": bearer("sk-bob")})
    other = ("POST", "/v1/completions", {"json": BODY, "headers": bearer("sk-alice")})
    free = ("POST", "/api/extra/tokencount", {"json": BODY, "headers": bearer("sk-bob")})
    kobold = ("POST", "/api/v1/generate", {"json": BODY, "headers": bearer("sk-bob")})
    *begun, refused, others, counted, told = answers(access, ask, ask, ask, other, free, kobold)
    assert [reply.status_code for reply in begun] == [200, 200]
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "30")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert (others.status_code, counted.status_code) == (200, 200)
    assert (told.status_code, told.json()["detail"]["type"]) == (429, "rate_limit")
    clock.now += 31
    assert [reply.status_code for reply in answers(access, ask, ask)] == [200, 429]


@pytest.mark.parametrize("stream", [True, False])
def test_a_place_is_free_again_when_the_answer_ends_or_its_client_leaves(stream: bool) -> None:
    async def run() -> list[int]:
        core = FakeCore(step_s=30)
        access = Access([make_key("k", "one", Limits(max_concurrent_requests=1))])
        how: dict[str, Any] = {"json": {**BODY, "stream": stream}, "headers": bearer("k")}
        async with client(core, access) as asking:
            first = asyncio.create_task(asking.post("/v1/completions", **how))
            while not core.streams:
                await asyncio.sleep(0.001)
            statuses = [(await asking.post("/v1/completions", **how)).status_code]
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            core.step_s = 0
            statuses += [(await asking.post("/v1/completions", **how)).status_code for _ in range(2)]
            statuses += [(await asking.post("/v1/completions", json={}, headers=bearer("k"))).status_code]
            return [*statuses, *(account.num_running for account in access)]

    assert asyncio.run(run()) == [429, 200, 200, 400, 0]


def test_metrics_count_by_name_and_logs_hold_no_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    access = Access(KEYS)
    ask = ("POST", "/v1/completions", {"json": {**BODY, "max_tokens": 5}, "headers": bearer("sk-alice")})
    refused = ("GET", "/v1/models", {"headers": bearer("sk-nobody")})
    *_, page = answers(access, ask, ask, refused, ("GET", "/metrics", {"headers": bearer("sk-bob")}))
    for line in (
        'isthmus:key_requests_total{key="alice"} 2.0',
        'isthmus:key_prompt_tokens_total{key="alice"} 2.0',
        'isthmus:key_generation_tokens_total{key="alice"} 6.0',
        'isthmus:key_requests_running{key="alice"} 0.0',
        "isthmus:unauthorized_requests_total 1.0",
    ):
        assert line in page.text.splitlines()
    assert "sk-" not in page.text + caplog.text + repr(access._ring.keys)


def test_texts_to_embed_count_for_their_key() -> None:
    how = {"json": {"input": ["ab", "cde"]}, "headers": bearer("sk-alice")}
    *_, page = answers(
        Access(KEYS), ("POST", "/v1/embeddings", how), ("GET", "/metrics", {"headers": bearer("sk-bob")})
    )
    for line in (
        'isthmus:key_requests_total{key="alice"} 1.0',
        'isthmus:key_prompt_tokens_total{key="alice"} 5.0',
        'isthmus:key_generation_tokens_total{key="alice"} 0.0',
    ):
        assert line in page.text.splitlines()


def test_other_sites_may_ask_first_and_read_refusals() -> None:
    origin = {"Origin": "https://lite.koboldai.net"}
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    before, refused = answers(
        Access(KEYS), ("OPTIONS", "/v1/models", {"headers": asked}), ("GET", "/v1/models", {"headers": origin})
    )
    assert before.status_code == 200
    assert before.headers["access-control-allow-headers"] == "authorization"
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")
    named = Cors(("https://mine.example",), credentials=True)
    (other,) = answers(None, ("GET", "/v1/models", {"headers": origin}), cors=named)
    (mine,) = answers(None, ("GET", "/v1/models", {"headers": {"Origin": "https://mine.example"}}), cors=named)
    assert "access-control-allow-origin" not in other.headers
    assert mine.headers["access-control-allow-credentials"] == "true"
    with pytest.raises(ValueError, match="named"):
        Cors(credentials=True)


FILE = """\
# who may come
sk-one
sk-two  name=bob max-requests-per-minute=5   # slow
sk-ops  admin name=ops max-concurrent-requests=0
"""


def test_a_file_of_keys() -> None:
    keys = parse_keys(FILE, Limits(60, 4))
    assert [(key.name, key.limits, key.admin) for key in keys] == [
        ("key-1", Limits(60, 4), False),
        ("bob", Limits(5, 4), False),
        ("ops", Limits(60, 0), True),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no key in it"),
        ("# nothing", "no key in it"),
        ("sk-a\nsk-a", "listed twice"),
        ("sk-a name=x\nsk-b name=x", "same name"),
        ("sk-a\nsk-b nam=x", "line 2: after the key come"),
        ("sk-a max-requests-per-minute=-1", "line 1: max-requests-per-minute must be a number"),
        ("sk-a,sk-b", "line 1: a key is made of"),
        ("sk-ä", "line 1: a key is made of"),
    ],
)
def test_a_file_that_cannot_be_used_says_why_without_its_keys(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        parse_keys(text, Limits())
    assert "sk-" not in str(refused.value)


def test_a_changed_file_counts_without_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, path = Clock(), tmp_path / "keys"

    def write(text: str) -> None:
        path.with_suffix(".new").write_text(text)
        os.replace(path.with_suffix(".new"), path)

    def statuses(*keys: str) -> list[int]:
        return [r.status_code for r in answers(access, *(("GET", "/v1/models", {"headers": bearer(k)}) for k in keys))]

    write("sk-old")
    access = Access(file=KeyFile(path, Limits()), clock=clock)
    assert statuses("sk-old", "sk-new") == [200, 401]
    write("sk-new")
    assert statuses("sk-old") == [200], "looked at once a second"
    clock.now += 1
    assert statuses("sk-old", "sk-new") == [401, 200]
    write("")
    clock.now += 1
    assert statuses("sk-new") == [200]
    assert "API keys stay as they were: " in caplog.text
    path.unlink()
    clock.now += 1
    assert statuses("sk-new") == [200]


def test_an_admin_reloads_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("sk-a admin")
    access = Access(file=KeyFile(path, Limits()), clock=Clock())
    reload = ("POST", "/admin/keys/reload", {"headers": bearer("sk-a")})
    path.write_text("sk-a admin\nsk-b")
    done, models = answers(access, reload, ("GET", "/v1/models", {"headers": bearer("sk-b")}))
    assert (done.json(), models.status_code) == ({"num_keys": 2}, 200)
    path.write_text("sk-a nonsense")
    (refused,) = answers(access, reload)
    assert refused.status_code == 400
    assert "stay as they were" in refused.json()["error"]["message"]


def test_a_bucket_gives_so_many_at_once_and_then_so_many_a_second() -> None:
    bucket = TokenBucket(3, 0.5, now=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [0, 0, 0, 2.0]
    assert bucket.take(11.0) == 1.0
    assert [bucket.take(12.0), bucket.take(12.0)] == [0, 2.0]
    assert [bucket.take(1000.0) for _ in range(4)] == [0, 0, 0, 2.0], "never more than it holds"


def test_a_body_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"prompt": '
        await asyncio.sleep(30)

    monkeypatch.setattr("isthmus.router.bodies.BODY_TIMEOUT_S", 0.05)
    (reply,) = answers(None, ("POST", "/v1/completions", {"content": slowly()}))
    assert (reply.status_code, reply.json()["error"]["message"]) == (408, "the body did not come within 0.05 s")


def test_the_files_of_kobold_lite_are_open_but_not_where_data_is() -> None:
    access = Access(KEYS)
    data = ("/v1/models", "/v2/rerank", "/api/v1/model", "/metrics", "/props", "/rerank", "/score")
    access.open_pages(("/", "/img/niko.png", *data))
    assert access.is_open("/img/niko.png")
    assert not any(map(access.is_open, data))
