"""The pages that show /openapi.json: in a browser that reaches nothing but the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from isthmus.tests.browser import CHROMIUM, Page, browsing
from isthmus.tests.serving import Serve, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
SHOWN = {
    "/docs": "document.querySelectorAll('.opblock').length > 50",
    "/redoc": "document.querySelectorAll('[data-section-id]').length > 50",
}


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    with serving("--engine", "fake", "--prefill", "0", "--api-keys", "sk-good") as started:
        assert started.url
        yield started


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browsing(tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("path", SHOWN)
def test_it_comes_whole_from_the_server(path: str, serve: Serve, page: Page) -> None:
    page.open(f"{serve.url}{path}")
    page.wait(SHOWN[path])
    assert [url for url in page.requests if not url.startswith((serve.url, "data:", "blob:"))] == []
    assert page.problems == []
