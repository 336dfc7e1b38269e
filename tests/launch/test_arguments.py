from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isthmus.launch.arguments import flags, read_config, to_arguments
from isthmus.launch.config import (
    AccessOptions,
    ConnectionOptions,
    CorsOptions,
    CurveOptions,
    DataOptions,
    DecodeConfig,
    DeviceOptions,
    EngineOptions,
    ExposureOptions,
    FakeEngineOptions,
    HttpOptions,
    ModelOptions,
    PlaceOptions,
    PrefillConfig,
    ProcessOptions,
    RouterConfig,
    RoutingOptions,
    ServeConfig,
    SpeculationOptions,
    TelemetryOptions,
    TlsOptions,
    TopologyOptions,
)
from isthmus.launch.main import COMMANDS, main, make_parser
from isthmus.launch.option import num_bytes, split_indices

WORKER = (EngineOptions(), DeviceOptions(), SpeculationOptions(), PlaceOptions(), FakeEngineOptions(), ProcessOptions())
PREFILL = PrefillConfig(ModelOptions(), ConnectionOptions(), CurveOptions(), *WORKER)
DECODE = DecodeConfig(ModelOptions(), ConnectionOptions(), CurveOptions(), DataOptions(), ExposureOptions(), *WORKER)
EDGE = (AccessOptions(), CorsOptions(), TlsOptions(), TelemetryOptions())
ROUTER = RouterConfig(
    ModelOptions(), HttpOptions(), *EDGE, RoutingOptions(), CurveOptions(), ExposureOptions(), ProcessOptions()
)


def parse(*arguments: str) -> Any:
    parsed = make_parser().parse_args(arguments)
    return read_config(parsed.command.config, parsed)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_nothing_given_gives_the_defaults() -> None:
    assert parse("prefill") == PREFILL
    assert parse("decode") == DECODE
    assert parse("router") == ROUTER
    assert parse("serve") == ServeConfig(
        TopologyOptions(),
        ModelOptions(),
        HttpOptions(),
        *EDGE,
        RoutingOptions(),
        DataOptions(),
        CurveOptions(),
        ExposureOptions(),
        EngineOptions(),
        DeviceOptions(),
        SpeculationOptions(),
        FakeEngineOptions(),
        ProcessOptions(),
    )


FLAGS = """serve model.gguf --prefill 0 --decode 2 --host 0.0.0.0 --port 80 --max-model-len 99 --dtype float32
    --served-model-name a b --chat-template t.jinja --load-format dummy --max-num-seqs 3 --block-size 32
    --max-num-batched-tokens 128 --no-enable-prefix-caching --enable-chunked-prefill --num-blocks 7
    --kv-cache-memory 1.5G --engine fake --fake-step-s 0.5 --no-restart --max-waiting 4 --drain-timeout 2
    --request-timeout 30 --local-prefill-max-tokens 0 --worker-address tcp://127.0.0.1:9 --log-level debug
    --kv-transport zmq --device cuda --gpu-memory-utilization 0.8 --kv-cache-dtype fp8_e4m3 --enforce-eager
    --gpus 1,0 --max-logprobs 5 --speculative-method draft --speculative-model small.gguf --num-speculative-tokens 6
    --speculative-layers 2 --api-keys a b,c --api-keys-file keys.txt --admin-key root --max-requests-per-minute 60
    --max-concurrent-requests 2 --open-metrics --allowed-origins https://a.example --allowed-methods GET POST
    --allowed-headers authorization --allow-credentials --ssl-keyfile key.pem --ssl-certfile cert.pem
    --ssl-ca-certs ca.pem --ssl-cert-reqs 2 --ssl-keyfile-password pass --max-body-size 1M --zmq-keys zmq --insecure-zmq
    --log-format json --tool-call-parser hermes --reasoning-parser none --metrics-prefix vllm
    --otlp-traces-endpoint http://127.0.0.1:4318"""


def test_flags_keep_the_names_users_know() -> None:
    config = parse(*FLAGS.split())
    assert config == ServeConfig(
        TopologyOptions(prefill=0, decode=2, gpus="1,0", restart=False),
        ModelOptions("model.gguf", 99, "dummy"),
        HttpOptions("0.0.0.0", 80, ("a", "b"), "t.jinja", 5, 4, 30.0, 2.0, 1 << 20, None, "hermes", "none"),
        AccessOptions(("a", "b,c"), "keys.txt", "root", 60, 2, True),
        CorsOptions(("https://a.example",), ("GET", "POST"), ("authorization",), True),
        TlsOptions("key.pem", "cert.pem", "ca.pem", 2, "pass"),
        TelemetryOptions("vllm", "http://127.0.0.1:4318/v1/traces"),
        RoutingOptions("tcp://127.0.0.1:9", 0),
        DataOptions(kv_transport="zmq"),
        CurveOptions("zmq"),
        ExposureOptions(True),
        EngineOptions("fake", "float32", 32, 7, 3 << 29, 3, 128, False, True),
        DeviceOptions("cuda", 0.8, "fp8_e4m3", True),
        SpeculationOptions("draft", "small.gguf", 6, 2),
        FakeEngineOptions(fake_step_s=0.5),
        ProcessOptions("debug", "json"),
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--max-modellen", "5"], "unrecognized arguments: --max-modellen"),
        (["serve", "--max-model", "5"], "unrecognized arguments: --max-model"),
        (["serve", "a", "b"], "unrecognized arguments: b"),
        (["router", "--prefill", "2"], "unrecognized arguments: --prefill"),
        (["prefill", "--port", "2"], "unrecognized arguments: --port"),
        (["prefill", "--data-host", "h"], "unrecognized arguments: --data-host"),
        (["serve", "--decode", "0"], "--decode: '0': must be at least 1"),
        (["serve", "--prefill", "-1"], "--prefill: '-1': must be at least 0"),
        (["serve", "--port", "http"], "--port: 'http': invalid literal for int"),
        (["serve", "--port", "65536"], "--port: '65536': must be at most 65535"),
        (["serve", "--dtype", "fp8"], "--dtype: invalid choice: 'fp8'"),
        (["serve", "--request-timeout", "nan"], "--request-timeout: 'nan': must be a number of seconds"),
        (["serve", "--dtype", "float64"], "--dtype: invalid choice: 'float64'"),
        (["serve", "--gpus", "0,x"], "--gpus: '0,x': must be different numbers such as 0,1"),
        (["serve", "--gpus", "0,0"], "--gpus: '0,0': must be different numbers such as 0,1"),
        (["serve", "--gpu", "0"], "unrecognized arguments: --gpu"),
        (["prefill", "--gpus", "0"], "unrecognized arguments: --gpus"),
        (["decode", "--gpu", "-1"], "--gpu: '-1': must be at least 0"),
        (["serve", "--gpu-memory-utilization", "90"], "'90': must be more than 0 and at most 1"),
        (["serve", "--kv-cache-dtype", "fp8"], "--kv-cache-dtype: invalid choice: 'fp8'"),
        (["serve", "--kv-cache-memory", "lots"], "--kv-cache-memory: 'lots': must be a size such as 512M"),
        (["serve", "--num-speculative-tokens", "17"], "--num-speculative-tokens: '17': must be at most 16"),
        (["decode", "--num-speculative-tokens", "0"], "--num-speculative-tokens: '0': must be at least 1"),
        (["prefill", "--speculative-layers", "0"], "--speculative-layers: '0': must be at least 1"),
        (["serve", "--speculative-method", "tree"], "--speculative-method: invalid choice: 'tree'"),
        (["router", "--speculative-method", "ngram"], "unrecognized arguments: --speculative-method"),
        (["serve", "--metrics-prefix", "2x"], "--metrics-prefix: '2x': must be letters, digits, _ and :"),
        (["router", "--metrics-prefix", "a-b"], "--metrics-prefix: 'a-b': must be letters, digits, _ and :"),
        (
            ["serve", "--otlp-traces-endpoint", "localhost:4317"],
            "must be a URL such as http://127.0.0.1:4318/v1/traces",
        ),
        (["prefill", "--otlp-traces-endpoint", "http://h"], "unrecognized arguments: --otlp-traces-endpoint"),
        (["serve", "--api-keys", ""], "--api-keys: '': must not be empty"),
        (["router", "--api-keys", "sk-a", " ,"], "--api-keys: ' ,': must not be empty"),
        (["serve", "--api-keys", '[""]'], "must not be empty"),
        (["serve", "--api-keys-file", ""], "--api-keys-file: '': must not be empty"),
        (["serve", "--admin-key", ""], "--admin-key: '': must not be empty"),
        (["router", "--max-body-size", "0"], "--max-body-size: '0': must be more than 0"),
        (["serve", "--max-body-size", "0.1"], "--max-body-size: '0.1': must be more than 0"),
        (["serve", "--served-model-name", "a", ""], "--served-model-name: '': must not be empty"),
        (["serve", "--allowed-origins", "foo"], "--allowed-origins: 'foo': foo is not *, nor an origin such as https"),
        (["serve", "--allowed-origins", "*,a.example:80"], "a.example:80 is not *, nor an origin"),
        (["serve", "--allowed-origins", "https://a.example/"], "https://a.example/ is not *, nor an origin"),
        (["serve", "--allowed-origins", "https://A.example"], "https://A.example is not *, nor an origin"),
        (["serve", "--no-enable-chunked-prefill"], "chunked prefill is always on"),
        (["decode", "--no-enable-chunked-prefill"], "chunked prefill is always on"),
        (["bench"], "invalid choice: 'bench'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refusal(capsys, *arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_shows_every_flag_its_default_and_an_example(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command.name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"isthmus {command.name}" in shown.split("example", 1)[1]
    for options in get_type_hints(command.config).values():
        for flag in flags(options):
            assert (flag.name if flag.meta["positional"] else flag.text) in shown


@pytest.mark.parametrize(
    ("text", "value"), [("4096", 4096), ("1K", 1024), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("3 mb", 3 << 20)]
)
def test_sizes(text: str, value: int) -> None:
    assert num_bytes(text) == value


@pytest.mark.parametrize(
    "text", ["", "*", "null", "https://a.example, http://[::1]:80", '["app://obsidian.md"]', "chrome-extension://abc"]
)
def test_origins_are_taken_as_browsers_send_them(text: str) -> None:
    assert parse("serve", "--allowed-origins", text).cors.allowed_origins == (text,)


def test_a_list_of_gpus_is_taken_apart() -> None:
    assert split_indices("2, 0,11") == (2, 0, 11)


def reads_back(name: str, config: Any) -> None:
    parsed = make_parser().parse_args([name, *to_arguments(config)])
    assert read_config(type(config), parsed) == config


texts = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/ -]*", fullmatch=True)


@given(
    model=st.none() | texts,
    served=st.lists(names, max_size=3).map(tuple),
    template=st.none() | texts,
    timeout_s=st.floats(0, 1e6),
)
def test_a_router_config_survives_the_command_line(model: Any, served: Any, template: Any, timeout_s: float) -> None:
    http = HttpOptions(served_model_name=served, chat_template=template, request_timeout_s=timeout_s)
    reads_back("router", replace(ROUTER, model=ModelOptions(model, 77), http=http))


@given(
    caching=st.booleans(),
    num_blocks=st.none() | st.integers(2, 10**9),
    memory=st.none() | st.integers(0, 10**15),
    step_s=st.floats(0, 10),
    name=st.none() | texts,
    gpu=st.none() | st.integers(0, 63),
    share=st.floats(0, 1, exclude_min=True),
    draft=st.none() | texts,
)
def test_a_worker_config_survives_the_command_line(
    caching: bool, num_blocks: Any, memory: Any, step_s: float, name: Any, gpu: Any, share: float, draft: Any
) -> None:
    engine = EngineOptions(num_blocks=num_blocks, kv_cache_memory_bytes=memory, enable_prefix_caching=caching)
    connection, speculation = ConnectionOptions(name=name), SpeculationOptions("draft", draft, 3)
    place, fake = PlaceOptions(gpu, share), FakeEngineOptions(step_s)
    config = replace(DECODE, engine=engine, connection=connection, speculation=speculation, place=place, fake=fake)
    reads_back("decode", config)
