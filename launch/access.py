"""Who may use the server, from its options and the environment."""

import os
from collections.abc import MutableMapping
from dataclasses import replace
from pathlib import Path

from ..router.access import Access
from ..router.api_keys import ApiKey, Limits, make_key
from ..router.cors import Cors
from ..router.key_file import KeyFile
from .config import AccessOptions, CorsOptions
from .option import split_list
from .resolve import ConfigError

API_KEYS = "ISTHMUS_API_KEYS"
ADMIN_KEY = "ISTHMUS_ADMIN_KEY"


def with_environment(options: AccessOptions, environment: MutableMapping[str, str] = os.environ) -> AccessOptions:
    """Keys that no option gives are those of the environment, which keeps none: no process started later has them."""
    api_keys, admin_key = environment.pop(API_KEYS, ""), environment.pop(ADMIN_KEY, "")
    return replace(
        options,
        api_keys=options.api_keys or split_list((api_keys,)),
        admin_key=options.admin_key or admin_key or None,
    )


def environment_keys() -> tuple[str, ...]:
    return split_list((os.environ.get(API_KEYS, ""),))


def hand_over(options: AccessOptions) -> tuple[AccessOptions, dict[str, str]]:
    """For the router's command line, which every user of the host can read, and its environment, which they cannot."""
    given = {API_KEYS: ",".join(split_list(options.api_keys)), ADMIN_KEY: options.admin_key or ""}
    return replace(options, api_keys=(), admin_key=None), {name: value for name, value in given.items() if value}


def make_access(options: AccessOptions) -> Access:
    """Raises ConfigError, which quotes no key."""
    limits = Limits(options.max_requests_per_minute, options.max_concurrent_requests)
    try:
        file = KeyFile(Path(options.api_keys_file), limits) if options.api_keys_file else None
        return Access(_given(options, limits), file=file, limits=limits, open_metrics=options.open_metrics)
    except (OSError, ValueError) as error:
        raise ConfigError(f"API keys: {error}") from error


def _given(options: AccessOptions, limits: Limits) -> list[ApiKey]:
    texts = split_list(options.api_keys)
    keys = [make_key(text, f"key-{number}", limits) for number, text in enumerate(texts, 1)]
    if options.admin_key is not None:
        keys.append(make_key(options.admin_key, "admin", admin=True))
    return keys


def make_cors(options: CorsOptions) -> Cors:
    """Raises ConfigError."""
    try:
        return Cors(
            split_list(options.allowed_origins),
            split_list(options.allowed_methods),
            split_list(options.allowed_headers),
            options.allow_credentials,
        )
    except ValueError as error:
        raise ConfigError(f"--allow-credentials: {error}") from error
