"""The page at /ui before a server that wants keys: it opens without one, says so, and works once it has one."""

from collections.abc import Iterator

import pytest
from isthmus.tests.browser import CHROMIUM, Page, browsing, wait_for
from isthmus.tests.serving import Serve, serving
from isthmus.tests.system.test_ui import send, set_sampler

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
WANTED = "The server wants an API key: enter it above."
PROBLEM = "document.querySelector('#problem')"
NUM_SHOWN = "document.querySelectorAll('.parameter').length"


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    with serving("--engine", "fake", "--prefill", "0", "--api-keys", "sk-good") as started:
        assert started.url
        yield started


@pytest.fixture
def page(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Opened by someone who has no key."""
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(f"{serve.url}/ui")
        opened.wait(f"{PROBLEM}.textContent === {WANTED!r}")
        yield opened


def enter_key(page: Page, key: str) -> None:
    page.problems.clear()
    page.type("#key", key)


def test_without_a_key_the_page_shows_nothing_but_that_it_wants_one(page: Page) -> None:
    assert page.run(f"!{PROBLEM}.hidden && document.activeElement.id === 'key'")
    assert page.run(f"{NUM_SHOWN} === 0 && document.querySelector('#model').textContent") == ""
    assert any("401" in problem for problem in page.problems), "what the server answered"
    page.click("#tab-topology")
    page.wait("document.querySelector('#tab-topology').getAttribute('aria-selected') === 'true'")
    page.wait(f"{PROBLEM}.textContent === {WANTED!r}")


def test_a_wrong_key_is_refused_and_the_right_one_works(page: Page) -> None:
    enter_key(page, "sk-wrong")
    wait_for(lambda: page.run("1") and any("401" in problem for problem in page.problems))
    assert page.run(f"{PROBLEM}.textContent") == WANTED
    assert page.run(NUM_SHOWN) == 0
    enter_key(page, "sk-good")
    page.wait(f"{PROBLEM}.hidden && {NUM_SHOWN} > 0")
    num_shown = page.run(NUM_SHOWN)
    set_sampler(page, "max_tokens", "5")
    send(page, "Hello")
    page.wait("document.querySelector('#usage').textContent.includes('5 tokens')")
    for tab, shown in (("topology", "#decode h3"), ("requests", "#timelines tr")):
        page.click(f"#tab-{tab}")
        page.wait(f"document.querySelector({shown!r}) !== null")
    assert page.run(f"{PROBLEM}.hidden && {NUM_SHOWN}") == num_shown
    assert page.problems == []


def test_the_key_outlasts_a_reload_of_the_tab(page: Page, serve: Serve) -> None:
    enter_key(page, "sk-good")
    page.wait(f"{NUM_SHOWN} > 0")
    page.open("about:blank")
    page.open(f"{serve.url}/ui")
    page.wait(f"{NUM_SHOWN} > 0")
    assert page.run(f"{PROBLEM}.hidden && document.querySelector('#key').value") == "sk-good"
    assert page.problems == []


def test_a_key_that_is_taken_away_is_asked_for_again(page: Page) -> None:
    enter_key(page, "sk-good")
    page.wait(f"{PROBLEM}.hidden && {NUM_SHOWN} > 0")
    enter_key(page, "")
    page.wait(f"{PROBLEM}.textContent === {WANTED!r}")
    send(page, "Hello")
    page.wait(f"{PROBLEM}.textContent.includes('API key of this server')")
    assert page.run("document.querySelector('#answers .assistant').classList.contains('failed')")
