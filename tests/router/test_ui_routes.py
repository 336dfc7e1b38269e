"""The page's files, and the headers that keep it to itself."""

import re

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.ui_routes import FOLDER
from isthmus.tests.router.edge import ask

FILES = sorted(file.name for file in FOLDER.iterdir())
TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


@pytest.mark.parametrize("name", ["", *(f"/{name}" for name in FILES)])
def test_files_are_served_with_a_strict_policy(name: str) -> None:
    reply = ask(FakeCore(), "GET", f"/ui{name}")
    file = FOLDER / (name.strip("/") or "index.html")
    assert reply.content == file.read_bytes()
    assert reply.headers["content-type"].startswith(TYPES[file.suffix[1:]])
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/ui/none.js", "/ui/../app.py", "/ui/%2e%2e/app.py"])
def test_there_is_nothing_else(path: str) -> None:
    assert ask(FakeCore(), "GET", path).status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_server(name: str) -> None:
    text = (FOLDER / name).read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|//[a-z]+\.[a-z]+/|style=\"|onclick=\"", text)
