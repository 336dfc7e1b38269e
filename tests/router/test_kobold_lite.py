"""Kobold Lite's page from the user's own files, and nothing but these."""

from pathlib import Path

import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.router.kobold_lite import lite_files
from isthmus.tests.router.edge import ask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lite = tmp_path / "lite"
    (lite / "img").mkdir(parents=True)
    (lite / ".git").mkdir()
    for name in ("index.html", "manifest.json", "img/niko.png", ".git/config", "health"):
        (lite / name).write_text(name)
    (tmp_path / "secret").write_text("secret")
    return lite


def get(path: str, lite: Path) -> tuple[int, str]:
    reply = ask(FakeCore(), "GET", path, served_with={"kobold_lite": lite_files(lite)})
    return reply.status_code, reply.text


def test_a_folder_is_served_at_the_root(folder: Path) -> None:
    assert get("/?local=true", folder) == (200, "index.html")
    assert get("/manifest.json", folder) == (200, "manifest.json")
    assert ask(FakeCore(), "HEAD", "/?local=true", served_with={"kobold_lite": lite_files(folder)}).status_code == 200
    assert get("/img/niko.png", folder) == (200, "img/niko.png")


def test_a_file_alone_is_the_page(folder: Path) -> None:
    lite = lite_files(folder / "index.html")
    reply = ask(FakeCore(), "GET", "/?local=true", served_with={"kobold_lite": lite})
    assert (reply.status_code, reply.text) == (200, "index.html")
    assert reply.headers["content-type"].startswith("text/html")
    assert get("/manifest.json", folder / "index.html")[0] == 404


@pytest.mark.parametrize(
    ("asked", "leads_to"), [("/", "?local=true"), ("/?nofiles=1&x=a%20b", "?local=true&nofiles=1&x=a%20b")]
)
def test_the_page_is_told_that_its_server_is_the_one_to_use(folder: Path, asked: str, leads_to: str) -> None:
    reply = ask(FakeCore(), "GET", asked, served_with={"kobold_lite": lite_files(folder)})
    assert (reply.status_code, reply.headers["location"]) == (307, leads_to)


@pytest.mark.parametrize("path", ["/.git/config", "/../secret", "/%2e%2e/secret", "/img/../../secret", "/img", "/none"])
def test_nothing_else_is_served(folder: Path, path: str) -> None:
    assert get(path, folder)[0] == 404


def test_routes_of_the_api_come_first(folder: Path) -> None:
    assert get("/health", folder) == (200, '{"status":"ready"}')
    assert get("/ui", folder)[0] == 200


def test_without_it_the_root_leads_to_our_page() -> None:
    reply = ask(FakeCore(), "GET", "/")
    assert (reply.status_code, reply.headers["location"]) == (302, "ui")


def test_a_path_without_a_page_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="is not there"):
        lite_files(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no index\.html"):
        lite_files(tmp_path)
    (tmp_path / "index.html").touch()
    monkeypatch.setattr("isthmus.router.kobold_lite.MAX_FILES", 0)
    with pytest.raises(ValueError, match="too many"):
        lite_files(tmp_path)
