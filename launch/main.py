"""The `isthmus` command."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from . import logs
from .arguments import add_config, read_config
from .child import Lifeline
from .config import ChatConfig, DecodeConfig, DoctorConfig, KeysConfig, PrefillConfig, RouterConfig, ServeConfig
from .resolve import CONFIG_ERROR_CODE, ConfigError

log = logging.getLogger(__name__)

DESCRIPTION = "Serves language models with prefill and decode in separate processes, over OpenAI's and KoboldAI's APIs."


@dataclass(frozen=True, slots=True)
class Command:
    name: str
    summary: str
    config: type
    run: Callable[[Any], int]
    epilog: str

    @property
    def positional(self) -> str:
        """For its usage."""
        known = {"model": "[MODEL] ", "keys": "[folder] "}
        return "".join(text for group, text in known.items() if group in self.config.__annotations__)


def _serve(config: ServeConfig) -> int:
    from .serve import serve

    return serve(config)


def _router(config: RouterConfig) -> int:
    lifeline = Lifeline.from_environment()
    from .router_process import run_router

    return run_router(config, lifeline)


def _prefill(config: PrefillConfig) -> int:
    lifeline = Lifeline.from_environment()
    from .worker_process import run_prefill

    return run_prefill(config, lifeline)


def _decode(config: DecodeConfig) -> int:
    lifeline = Lifeline.from_environment()
    from .worker_process import run_decode

    return run_decode(config, lifeline)


def _chat(config: ChatConfig) -> int:
    from .chat import chat

    return chat(config)


def _keys(config: KeysConfig) -> int:
    from .zmq_keys import new_keys

    return new_keys(config)


def _doctor(config: DoctorConfig) -> int:
    from .doctor import doctor

    return doctor(config)


COMMANDS = (
    Command(
        "serve",
        "start everything on this host: a router, prefill and decode workers",
        ServeConfig,
        _serve,
        """\
examples:
  isthmus serve                                    the demo model on port 2242
  isthmus serve models/Qwen3-0.6B --prefill 1 --decode 2
  isthmus serve model.Q4_1.gguf --prefill 0        no prefill worker: plain aggregated serving
  isthmus serve models/Llama-8B --gpus 2,3         one prefill and one decode worker, on these GPUs
  isthmus serve --engine fake --fake-step-s 0.01   no arithmetic: to try clients and load

The cores are divided between the workers; OMP_NUM_THREADS in the environment overrides that.""",
    ),
    Command(
        "router",
        "start the router alone: HTTP on one side, workers on the other",
        RouterConfig,
        _router,
        """\
example, three terminals:
  isthmus router models/Qwen3-0.6B
  isthmus prefill
  isthmus decode

Workers learn MODEL from the router. On other hosts, start the router with --worker-address tcp://0.0.0.0:2243 and the
workers with --router tcp://ROUTER:2243 and, for decode, --data-host with an address the prefill workers can reach;
give all of them --zmq-keys DIR, which `isthmus keys DIR` makes.""",
    ),
    Command(
        "prefill",
        "start one prefill worker: computes prompts and sends their KV to decode workers",
        PrefillConfig,
        _prefill,
        "example:\n  isthmus prefill --router tcp://127.0.0.1:2243\n\nWithout MODEL it loads what the router serves.",
    ),
    Command(
        "decode",
        "start one decode worker: generates tokens",
        DecodeConfig,
        _decode,
        "example:\n  isthmus decode --router tcp://127.0.0.1:2243\n\nWithout MODEL it loads what the router serves.",
    ),
    Command(
        "chat",
        "talk to a running server from the terminal",
        ChatConfig,
        _chat,
        "example:\n  isthmus chat --temperature 0.7 --system 'You answer in one sentence.'",
    ),
    Command(
        "keys",
        "make keys for the traffic between router and workers on several hosts",
        KeysConfig,
        _keys,
        """\
example:
  isthmus keys cluster-keys
  isthmus router models/Qwen3-0.6B --worker-address tcp://0.0.0.0:2243 --zmq-keys cluster-keys
  isthmus decode --router tcp://ROUTER:2243 --data-host THIS_HOST --zmq-keys cluster-keys""",
    ),
    Command(
        "doctor",
        "tell what this machine has for Isthmus: GPUs, links, libraries, and what is wrong with them",
        DoctorConfig,
        _doctor,
        "example:\n  isthmus doctor --json\n\nThe exit code is 1 if something has to be put right.",
    ),
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "isthmus", description=DESCRIPTION, epilog="isthmus COMMAND --help explains a command.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"isthmus {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            usage=f"isthmus {command.name} {command.positional}[options]",
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_config(subparser, command.config)
        subparser.set_defaults(command=command, subparser=subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code. Raises SystemExit for a command line that is not understood."""
    parsed = make_parser().parse_args(arguments)
    command: Command = parsed.command
    config: Any = read_config(command.config, parsed)
    if getattr(parsed, "enable_chunked_prefill", True) is False:
        parsed.subparser.error("--no-enable-chunked-prefill: chunked prefill is always on")
    logs.set_up(getattr(parsed, "log_level", "warning"), getattr(parsed, "log_format", "text"))
    try:
        return command.run(config)
    except ConfigError as error:
        log.error("%s", error)
        return CONFIG_ERROR_CODE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
