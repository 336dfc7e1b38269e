"""Keys, certificates and addresses as the command line gives them."""

import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from isthmus.launch.access import hand_over, make_access, make_cors, with_environment
from isthmus.launch.config import AccessOptions, CorsOptions, CurveOptions, TlsOptions
from isthmus.launch.main import main
from isthmus.launch.option import split_list
from isthmus.launch.resolve import ConfigError
from isthmus.launch.tls import hide_password, make_tls, with_password
from isthmus.launch.zmq_keys import host_of, is_loopback, refuse_exposed, router_keys, worker_keys
from isthmus.tests.certificates import make_certificate
from isthmus.tests.serving import serving


@pytest.mark.parametrize("texts", [("a", "b", "c"), ("a,b,c",), ("a, b", "c"), ('["a", "b"]', "c")])
def test_lists_are_written_as_users_know_them(texts: tuple[str, ...]) -> None:
    assert split_list(texts) == ("a", "b", "c")


def test_keys_come_from_options_or_the_environment_which_forgets_them() -> None:
    environment = {"ISTHMUS_API_KEYS": "a,b", "ISTHMUS_ADMIN_KEY": "root", "HOME": "/"}
    assert with_environment(AccessOptions(), environment) == AccessOptions(("a", "b"), admin_key="root")
    assert environment == {"HOME": "/"}
    given = AccessOptions(("c",), admin_key="other")
    assert with_environment(given, {"ISTHMUS_API_KEYS": "a", "ISTHMUS_ADMIN_KEY": "root"}) == given


def test_no_key_is_on_the_routers_command_line() -> None:
    options = AccessOptions(("a", "b,c"), admin_key="root", max_requests_per_minute=5)
    shown, secrets = hand_over(options)
    assert shown == AccessOptions(max_requests_per_minute=5)
    assert with_environment(shown, secrets) == AccessOptions(
        ("a", "b", "c"), admin_key="root", max_requests_per_minute=5
    )
    assert hand_over(AccessOptions()) == (AccessOptions(), {})


def test_a_passphrase_comes_from_the_option_or_the_environment_and_is_on_no_command_line() -> None:
    environment = {"ISTHMUS_SSL_KEYFILE_PASSWORD": "sesame", "HOME": "/"}
    options = with_password(TlsOptions(ssl_certfile="cert.pem"), environment)
    assert (options.ssl_keyfile_password, environment) == ("sesame", {"HOME": "/"})
    shown, secrets = hide_password(options)
    assert shown == TlsOptions(ssl_certfile="cert.pem")
    assert with_password(shown, secrets) == options
    given = TlsOptions(ssl_certfile="cert.pem", ssl_keyfile_password="other")
    assert with_password(given, {"ISTHMUS_SSL_KEYFILE_PASSWORD": "sesame"}) == given
    assert with_password(TlsOptions(), {"ISTHMUS_SSL_KEYFILE_PASSWORD": "sesame"}) == TlsOptions()
    assert hide_password(TlsOptions()) == (TlsOptions(), {})


def test_what_cannot_be_used_is_refused_in_a_sentence_without_keys(tmp_path: Path) -> None:
    for options, said in (
        (AccessOptions(("sk-same", "sk-same")), "listed twice"),
        (AccessOptions(("sk-ä",)), "printable ASCII"),
        (AccessOptions(api_keys_file=str(tmp_path / "none")), "No such file"),
    ):
        with pytest.raises(ConfigError, match=said) as refused:
            make_access(options)
        assert "sk-" not in str(refused.value)
    with pytest.raises(ConfigError, match="--allow-credentials: "):
        make_cors(CorsOptions(allow_credentials=True))


def test_certificates_that_cannot_be_used_are_refused_in_a_sentence(tmp_path: Path) -> None:
    bad = tmp_path / "cert.pem"
    bad.write_text("nonsense")
    for options, said in (
        (TlsOptions(ssl_keyfile="key.pem"), "give --ssl-certfile"),
        (TlsOptions(ssl_keyfile_password="sesame"), "give --ssl-certfile"),
        (TlsOptions(ssl_certfile=str(bad)), "cannot be used"),
        (TlsOptions(ssl_certfile=str(tmp_path / "none")), "cannot be used"),
        (TlsOptions(ssl_certfile=str(bad), ssl_cert_reqs=2), "need both --ssl-ca-certs and"),
    ):
        with pytest.raises(ConfigError, match=said):
            make_tls(options)
    assert make_tls(TlsOptions()) is None


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("tcp://127.0.0.1:2243", True),
        ("tcp://127.8.0.1:*", True),
        ("tcp://[::1]:2243", True),
        ("tcp://localhost:1", True),
        ("tcp://lo:1", True),
        ("ipc:///tmp/router", True),
        ("tcp://0.0.0.0:2243", False),
        ("tcp://*:2243", False),
        ("tcp://[::]:2243", False),
        ("tcp://10.0.0.7:2243", False),
        ("tcp://eth0:2243", False),
    ],
)
def test_only_loopback_addresses_need_no_keys(address: str, local: bool) -> None:
    assert is_loopback(host_of(address)) == local
    refuse_exposed("--x", host_of(address), CurveOptions(), insecure=True)
    refuse_exposed("--x", host_of(address), CurveOptions("keys"), insecure=False)
    if not local:
        with pytest.raises(ConfigError, match="other machines may reach"):
            refuse_exposed("--x", host_of(address), CurveOptions(), insecure=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--engine", "fake", "--worker-address", "tcp://0.0.0.0:2243"),
        ("serve", "--engine", "fake", "--data-host", "0.0.0.0"),
        ("decode", "--engine", "fake", "--data-host", "eth0"),
    ],
)
def test_exposed_addresses_are_refused_before_anything_starts(
    arguments: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(arguments) == 2
    assert "--insecure-zmq if you trust every machine" in caplog.text


def test_keys_between_processes_are_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "keys"
    assert main(["keys", str(folder)]) == 0
    assert f"--zmq-keys {folder}" in capsys.readouterr().out
    router, worker = router_keys(CurveOptions(str(folder))), worker_keys(CurveOptions(str(folder)))
    assert router
    assert worker
    assert (router.own.public, router.clients) == (worker.router, frozenset((worker.own.public,)))
    assert main(["keys", str(folder)]) == 2
    assert "there are keys in" in caplog.text
    with pytest.raises(ConfigError, match=r"--zmq-keys: .*`isthmus keys DIR`"):
        router_keys(CurveOptions(str(tmp_path)))


def test_everything_locked_still_answers_whoever_has_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTPS, its passphrase and an API key from the environment, CURVE keys on TCP for control and KV."""
    locked = make_certificate(tmp_path, "server", password="open sesame")
    main(["keys", str(tmp_path / "zmq")])
    monkeypatch.setenv("ISTHMUS_API_KEYS", "sk-secret")
    monkeypatch.setenv("ISTHMUS_SSL_KEYFILE_PASSWORD", "open sesame")
    https = ("--ssl-keyfile", locked.key, "--ssl-certfile", locked.cert)
    curve = ("--zmq-keys", str(tmp_path / "zmq"), "--kv-transport", "zmq")
    with serving("--engine", "fake", *https, *curve, "--local-prefill-max-tokens", "0") as serve:
        url, context = serve.url, ssl.create_default_context(cafile=locked.cert)
        assert url.startswith("https://")
        body = b'{"prompt": "Once upon a time", "max_tokens": 3}'
        request = urllib.request.Request(f"{url}/v1/completions", body)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=30, context=context)
        request.add_header("Authorization", "Bearer sk-secret")
        with urllib.request.urlopen(request, timeout=30, context=context) as response:
            assert b'"completion_tokens":3' in response.read()
        for name in ("router", "decode-0"):
            child = serve.child(name)
            assert child
            shown = " ".join(child.cmdline())
            assert "sk-secret" not in shown
            assert "sesame" not in shown
            assert ("ISTHMUS_API_KEYS" in child.environ()) == (name == "router")
            assert ("ISTHMUS_SSL_KEYFILE_PASSWORD" in child.environ()) == (name == "router")
        assert "sk-secret" not in serve.text
        assert "sesame" not in serve.text
