"""deploy/ without Docker: linted, and what one file says of another is so."""

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from isthmus.launch.config import DEFAULT_PORT, HttpOptions
from isthmus.tests.deploy.containers import (
    COMPOSE,
    DOCKERFILE,
    ROOT,
    Unset,
    compose,
    image_environment,
    instructions,
    only,
)

GIVEN = {"MODELS": "/somewhere", "MODEL": "x.gguf"}
WORKERS = ("prefill", "decode")


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(sysconfig.get_path("scripts")) / "hadolint"), "--failure-threshold", "style", str(DOCKERFILE)],
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
    ],
    ids=["hadolint", "compose-spec"],
)
def test_lint(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def makefile_pip_lines() -> list[str]:
    """What `make install` tells pip to install, in order."""
    text = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^(\w+) = (.*)$", text, re.MULTILINE))
    recipe = text.split("$(STAMP): ", 1)[1].split("\n\n", 1)[0]
    lines = re.findall(r"\$\(PIP\) (.*)", recipe)
    return [re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], line) for line in lines]


def test_the_image_installs_what_make_installs() -> None:
    runs = "\n".join(one.text for one in instructions("RUN"))
    installed = re.findall(r"pip install --disable-pip-version-check (.*)", runs)
    assert installed == makefile_pip_lines()
    assert installed[0].startswith("torch==")
    assert len(installed) == 4


def test_all_that_is_copied_exists_and_all_packages_are_copied() -> None:
    sources = {word.removesuffix("/") for one in instructions("COPY") for word in one.words[:-1]}
    assert {source for source in sources if not (ROOT / source).exists()} == set()
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {name.split(".")[1] for name in packages if "." in name}
    assert folders | {"__init__.py", "pyproject.toml", "README.md", "LICENSE"} <= sources
    assert all(one.words[-1] in ("./", one.words[0]) for one in instructions("COPY"))


def test_the_python_of_the_image_is_supported() -> None:
    version = re.match(r"python:3\.(\d+)-slim", only("FROM").text)
    bounds = re.search(
        r">=3\.(\d+),<3\.(\d+)", tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    )
    assert version
    assert bounds
    assert int(bounds[1]) <= int(version[1]) < int(bounds[2])


def test_the_image_runs_as_a_user_without_rights() -> None:
    user = only("USER").text
    assert user.isdecimal()
    assert int(user) > 0
    (made,) = [one.text for one in instructions("RUN") if "useradd" in one.text]
    assert f"--uid {user} " in made
    assert made.endswith(f"--owner=isthmus {image_environment()['ISTHMUS_CACHE']}")


def test_ports_are_the_default_one_and_only_this_host_reaches_it() -> None:
    assert only("EXPOSE").text == str(DEFAULT_PORT)
    services = compose(**GIVEN)["services"]
    assert services["router"]["ports"] == [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"]
    assert not any("ports" in services[name] for name in WORKERS)
    assert compose(**GIVEN, PORT="80")["services"]["router"]["ports"] == [f"127.0.0.1:80:{DEFAULT_PORT}"]


def test_every_service_is_the_image_with_the_model_read_only() -> None:
    for service in compose(**GIVEN)["services"].values():
        assert service["image"] == "isthmus"
        assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DOCKERFILE
        models, cache = service["volumes"]
        assert (models["source"], models["target"], models["read_only"]) == ("/somewhere", "/models", True)
        assert cache["target"] == image_environment()["ISTHMUS_CACHE"]
        assert service["restart"] == "unless-stopped"
        assert service["cap_drop"] == ["ALL"]


def test_what_must_be_set_is_asked_for() -> None:
    with pytest.raises(Unset, match="the folder that MODEL is in"):
        compose(MODEL="x.gguf")
    with pytest.raises(Unset, match=r"a \.gguf file or a folder in MODELS"):
        compose(MODELS="/somewhere")


def test_workers_wait_for_the_router_which_alone_is_probed() -> None:
    services = compose(**GIVEN)["services"]
    for name in WORKERS:
        assert services[name]["depends_on"] == {"router": {"condition": "service_started"}}
        assert services[name]["healthcheck"] == {"disable": True}
        assert services[name]["environment"] == {"OMP_NUM_THREADS": 1}
    assert "healthcheck" not in services["router"]
    assert f":{DEFAULT_PORT}/health" in only("HEALTHCHECK").text


def test_docker_waits_longer_than_running_answers_may_take() -> None:
    for service in compose(**GIVEN)["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) > 2 * HttpOptions().drain_timeout_s


def test_no_secret_is_in_these_files() -> None:
    for path in (DOCKERFILE, COMPOSE):
        said = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert not re.search(r"(?i)token|secret|passw|api.?key", "\n".join(said))
