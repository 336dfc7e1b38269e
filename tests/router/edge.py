"""A small server edge for tests: bytes as tokens, a ChatML template, a scripted core, a client without a port."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import httpx
from isthmus.router.app import create_app
from isthmus.router.fake_core import FAKE_HIDDEN_SIZE, FakeCore
from isthmus.router.job import Job
from isthmus.router.served import Served
from isthmus.text.chat_template import ChatTemplate
from isthmus.text.tokenizer import Tokenizer, set_bos_eos
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as BackendTokenizer

T = TypeVar("T")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*, bos: bool = False) -> Tokenizer:
    """One token a byte, and <|bos|>, <|im_start|>, <|im_end|> (end of sequence) at the end of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = BackendTokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|bos|>", "<|im_start|>", "<|im_end|>")])
    if bos:
        set_bos_eos(backend, "<|bos|>", None)
    specials = {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
    return Tokenizer(backend, special_tokens=specials, eos_ids=frozenset({258}))


TOKENIZER = byte_tokenizer()
EOS = 258


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def served(**changes: Any) -> Served:
    given: dict[str, Any] = {
        "model_names": ("tiny", "alias"),
        "tokenizer": TOKENIZER,
        "chat_template": ChatTemplate(TEMPLATE, {}),
        "max_model_len": 200,
        "eos_ids": (EOS,),
        "created": 1_700_000_000,
        "hidden_size": FAKE_HIDDEN_SIZE,
    }
    return Served(**{**given, **changes})


def say(*texts: str) -> Callable[[Job, int], Iterator[int]]:
    """A script: choice i says texts[i], or the last one, and ends."""
    return lambda job, choice: iter([*ids(texts[min(choice, len(texts) - 1)]), EOS])


def saying(*texts: str, **settings: Any) -> FakeCore:
    return FakeCore(say(*texts), **settings)


@contextlib.asynccontextmanager
async def http_client(core: FakeCore, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(core, served(**changes)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def ask(core: FakeCore, method: str, path: str, *, served_with: dict[str, Any] | None = None, **how: Any) -> Any:
    """The answer to one request."""

    async def run() -> httpx.Response:
        async with http_client(core, **(served_with or {})) as client:
            return await client.request(method, path, **how)

    return asyncio.run(run())


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)
