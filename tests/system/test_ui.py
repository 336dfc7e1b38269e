"""The page at /ui in a real browser, before `isthmus serve` with the fake engine, one worker of each kind.

ISTHMUS_SCREENSHOTS=docs/ui writes the pictures that the documentation shows.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from isthmus.tests.browser import CHROMIUM, Page, browsing
from isthmus.tests.serving import Serve, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    speed = ("--fake-step-s", "0.006", "--fake-token-s", "0.0003", "--local-prefill-max-tokens", "0")
    with serving("--engine", "fake", "--prefill", "1", "--served-model-name", "demo", *speed) as started:
        assert started.url
        yield started


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, serve: Serve) -> Iterator[Page]:
    """Freshly loaded, with the samplers there. What the browser complains of fails the test."""
    browser.resize(1280, 800)
    browser.run("globalThis.sessionStorage?.clear?.()" if browser.requests else "0")
    browser.open("about:blank")
    browser.problems.clear()
    browser.requests.clear()
    browser.open(f"{serve.url}/ui")
    browser.wait("document.querySelectorAll('.parameter').length > 0")
    yield browser
    assert browser.problems == []
    assert all(url.startswith((serve.url, "data:")) for url in browser.requests), "nothing comes from elsewhere"


def keep_screenshot(page: Page, name: str) -> None:
    """Always made; written down where the environment says so."""
    picture = page.screenshot()
    assert picture.startswith(b"\x89PNG")
    folder = os.environ.get("ISTHMUS_SCREENSHOTS")
    if folder:
        (Path(folder) / name).write_bytes(picture)


def send(page: Page, text: str) -> None:
    page.type("#prompt", text)
    page.click("#send")


def set_sampler(page: Page, name: str, value: str) -> None:
    page.run(f"document.querySelector('#sampler-{name}').closest('details').open = true")
    page.type(f"#sampler-{name}", value)


def sent(page: Page) -> dict:
    body: dict = json.loads(page.text("#body"))
    return body


def test_every_parameter_has_a_labelled_field_with_its_help(page: Page) -> None:
    known = page.run("fetch('v1/samplers').then(r => r.json()).then(r => r.data)")
    shown = page.run(
        "[...document.querySelectorAll('.parameter')].map(row => {"
        " const id = row.querySelector('label').htmlFor, field = document.getElementById(id);"
        " return [row.dataset.name, row.contains(field),"
        " document.getElementById(field.getAttribute('aria-describedby')).textContent]; })"
    )
    assert {name for name, *_ in shown} == {one["name"] for one in known}
    assert all(labelled for _, labelled, _ in shown)
    help_of = {name: text for name, _, text in shown}
    for one in known:
        assert one["help"] in help_of[one["name"]]
        [neutral] = re.findall(r"Neutral: (.*?)\.(?: Also: .*)?$", help_of[one["name"]])
        assert json.loads(neutral) == one["neutral"]


def test_every_control_has_a_name(page: Page) -> None:
    names = page.run(
        "[...document.querySelectorAll('input, textarea, select, button, meter')].map(e =>"
        " (e.labels?.[0]?.textContent || e.getAttribute('aria-label') || e.textContent).trim())"
    )
    assert names
    assert all(names)


def test_a_chat_streams_and_is_remembered(page: Page) -> None:
    set_sampler(page, "max_tokens", "40")
    page.type("#system", "Be kind.")
    send(page, "Hello")
    page.wait("document.querySelector('#answers .assistant')?.textContent.length > 0")
    page.wait("!document.querySelector('#send').disabled")
    assert "40 tokens" in page.text("#usage")
    body = sent(page)
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][2]["content"] == page.text("#answers .assistant")
    assert body["max_tokens"] == 40
    assert body["stream"] is True


def test_text_comes_piece_by_piece_and_stop_ends_it(page: Page) -> None:
    page.click("input[value=completion]")
    set_sampler(page, "max_tokens", "400")
    set_sampler(page, "ignore_eos", "")
    send(page, "Once")
    first = page.wait("document.querySelector('#answers div')?.textContent.length")
    page.wait(f"document.querySelector('#answers div').textContent.length > {first} + 5")
    assert page.run("document.querySelector('#send').disabled"), "it is still being written"
    page.click("#stop")
    page.wait("!document.querySelector('#send').disabled")
    length = len(page.text("#answers div"))
    ended = page.wait("fetch('v1/timelines').then(r => r.json()).then(r => r.data[0].outcome)")
    assert ended == "abort"
    assert len(page.text("#answers div")) == length


def test_values_are_sent_as_they_are_set_and_no_others(page: Page) -> None:
    page.click("input[value=completion]")
    page.click("#stream")
    for name, value in {
        "temperature": "0.5",
        "top_k": "40",
        "banned_strings": '["a phrase"]',
        "logit_bias": '{"5": -1}',
        "logprobs": "2",
        "max_tokens": "4",
    }.items():
        set_sampler(page, name, value)
    page.run("document.querySelector('#sampler-ignore_eos').value = 'true'")
    page.run("document.querySelector('#sampler-ignore_eos').dispatchEvent(new Event('input', {bubbles: true}))")
    page.type("#prompt", "Once")
    assert sent(page) == {
        "prompt": "Once",
        "temperature": 0.5,
        "top_k": 40,
        "banned_strings": ["a phrase"],
        "logit_bias": {"5": -1},
        "logprobs": 2,
        "ignore_eos": True,
        "max_tokens": 4,
    }


def test_an_answer_may_come_whole(page: Page) -> None:
    page.click("input[value=completion]")
    page.click("#stream")
    set_sampler(page, "max_tokens", "4")
    send(page, "Once")
    page.wait("document.querySelector('#usage').textContent.includes('4 tokens')")
    assert page.text("#answers div").startswith("Once")
    assert len(page.text("#answers div")) > len("Once")


def test_a_slider_and_its_number_are_one(page: Page) -> None:
    slider = "document.querySelector('.parameter[data-name=top_p] input[type=range]')"
    page.run(f"{slider}.value = 0.9; {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    assert sent(page)["top_p"] == 0.9
    set_sampler(page, "top_p", "0.5")
    assert page.run(f"{slider}.value") == "0.5"


def test_a_refusal_names_the_field(page: Page) -> None:
    set_sampler(page, "temperature", "-3")
    send(page, "Hello")
    page.wait("!document.querySelector('#problem').hidden")
    assert "temperature" in page.text("#problem")
    assert page.run("document.querySelector('.parameter.wrong').dataset.name") == "temperature"
    page.problems[:] = [problem for problem in page.problems if "400" not in problem]  # which the browser logs


def test_a_value_that_cannot_be_read_is_not_sent(page: Page) -> None:
    set_sampler(page, "logit_bias", "{5")
    num_requests = len([url for url in page.requests if "completions" in url])
    send(page, "Hello")
    page.wait("!document.querySelector('#problem').hidden")
    assert "logit_bias" in page.text("#problem")
    assert len([url for url in page.requests if "completions" in url]) == num_requests


def test_the_key_goes_with_every_request_and_stays_in_the_tab(page: Page) -> None:
    set_sampler(page, "max_tokens", "2")
    page.type("#key", "secret")
    assert page.run("Object.values(sessionStorage)") == ["secret"]
    assert page.run("Object.values(localStorage)") == []
    page.run(
        "globalThis.seen = []; globalThis.real = fetch;"
        " globalThis.fetch = (path, how) => { seen.push(how?.headers?.Authorization); return real(path, how); }; 0"
    )
    page.click("#tab-topology")
    page.wait("seen.length > 0")
    page.click("#tab-playground")
    page.wait("!document.querySelector('#playground').hidden")
    send(page, "Hello")
    page.wait("!document.querySelector('#send').disabled")
    assert set(page.run("seen")) == {"Bearer secret"}


def test_workers_links_and_requests_are_shown(page: Page) -> None:
    set_sampler(page, "max_tokens", "20")
    send(page, "Hello " * 40)
    page.wait("document.querySelector('#usage').textContent.includes('20 tokens')")
    page.click("#tab-topology")
    page.wait("document.querySelector('#links td:nth-child(5)')?.textContent.includes('B')")
    assert page.text("#prefill h3").startswith("prefill-0")
    assert page.text("#decode h3").startswith("decode-0")
    assert page.run("[...document.querySelectorAll('#links td')].slice(0, 2).map(e => e.textContent)") == [
        "prefill-0", "decode-0",
    ]  # fmt: skip
    page.wait("document.querySelector('#decode dd').textContent.match(/of [1-9]/)")
    page.click("#tab-requests")
    page.wait("document.querySelectorAll('#timelines tr').length > 0")
    row = page.text("#timelines tr")
    assert "prefill-0 → decode-0" in row
    assert page.run("document.querySelector('#timelines .bar').getAttribute('aria-label')").startswith("queue ")
    widths = page.run("[...document.querySelectorAll('.bar')].map(e => e.scrollWidth - e.clientWidth)")
    assert all(over <= 8 for over in widths), "stages fit into their bars"


def test_tabs_by_keyboard_and_by_address(page: Page) -> None:
    page.run("document.querySelector('#tab-playground').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
    page.wait("!document.querySelector('#topology').hidden")
    assert page.run("document.activeElement.id") == "tab-topology"
    page.run("location.hash = '/requests'; 0")
    page.wait("!document.querySelector('#requests').hidden")


BUSY = """
globalThis.busy = Array.from({length: 12}, (_, i) => fetch('v1/completions', {
  method: 'POST', body: JSON.stringify({prompt: `${i} `.repeat(300), max_tokens: 80, ignore_eos: true}),
})); 0"""


def test_pictures(page: Page) -> None:
    page.resize(1100, 680)
    set_sampler(page, "max_tokens", "60")
    set_sampler(page, "temperature", "0.8")
    send(page, "Tell me of a strip of land between two seas.")
    page.wait("document.querySelector('#usage').textContent.includes('60 tokens')")
    grounds = []
    for scheme in ("dark", "light"):
        page.media(scheme)
        grounds.append(page.run("getComputedStyle(document.body).backgroundColor"))
        keep_screenshot(page, f"playground-{scheme}.png")
    assert len(set(grounds)) == 2
    page.run(BUSY)
    page.click("#tab-topology")
    page.wait("/running[1-9]/.test(document.querySelector('#decode').textContent)")
    keep_screenshot(page, "topology.png")
    page.click("#tab-requests")
    page.wait("document.querySelectorAll('#timelines tr').length >= 12")
    keep_screenshot(page, "requests.png")
    assert page.run("Promise.all(busy).then(all => all.every(reply => reply.ok))")
    page.resize(400, 800)
    assert page.run("document.querySelector('#requests').hidden") is False
    page.click("#tab-playground")
    page.wait("!document.querySelector('#playground').hidden")
    assert page.run("document.documentElement.scrollWidth") <= 400, "nothing is cut off on a phone"
