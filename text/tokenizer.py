"""Text to token ids and back, with one beginning-of-sequence token and all the model's end tokens known."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, processors
from tokenizers import Tokenizer as BackendTokenizer

from .token_bytes import TokenBytes


class Tokenizer:
    """A model's tokenizer, loaded from the folder that `text.resolve` made. Safe to share between threads."""

    def __init__(
        self,
        backend: BackendTokenizer,
        *,
        special_tokens: dict[str, str],
        eos_ids: frozenset[int],
        vocab_size: int | None = None,
    ) -> None:
        """`special_tokens`: bos_token, eos_token, … by name. `vocab_size`: the model's, which may exceed the
        tokenizer's. Whether BOS is wanted is told by the post-processor of `backend`."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.token_bytes = TokenBytes(backend)
        self.special_tokens = special_tokens
        self.special_ids = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self.eos_ids = eos_ids
        self.vocab_size = vocab_size or max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        bos = special_tokens.get("bos_token")
        self.bos_id = None if bos is None else backend.token_to_id(bos)
        separator = special_tokens.get("sep_token")
        self.separator_id = None if separator is None else backend.token_to_id(separator)
        """Of the token between two texts that an encoder reads together."""
        self.adds_bos = self.bos_id is not None and self._encode("", add_special_tokens=True)[:1] == [self.bos_id]

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads tokenizer.json, tokenizer_config.json, config.json, generation_config.json (the first must exist).

        Raises ValueError if the tokenizer is broken or of a kind that is not supported.
        """
        backend = load_backend(folder / "tokenizer.json")
        config, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
        special_tokens = read_special_tokens(folder)
        apply_tokenizer_config(backend, read_json(folder / "tokenizer_config.json"), special_tokens)
        eos_ids = {*as_ids(generation.get("eos_token_id")), *as_ids(config.get("eos_token_id"))}
        eos = special_tokens.get("eos_token")
        eos_id = None if eos is None else backend.token_to_id(eos)
        return cls(
            backend,
            special_tokens=special_tokens,
            eos_ids=frozenset(eos_ids | set(as_ids(eos_id))),
            vocab_size=config.get("vocab_size"),
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; what spells a special token becomes it. With `add_special_tokens`, what the model
        expects around a prompt is added, and BOS is there once even if `text` begins with it. Raises ValueError for
        text that is not valid Unicode."""
        ids = self._encode(text, add_special_tokens)
        return self._one_bos(ids) if add_special_tokens else ids

    def encode_within(self, text: str, max_tokens: int, *, add_special_tokens: bool = True) -> list[int]:
        """As `encode`, of as much of the text, from its beginning, as fits into `max_tokens` ids with what is added.
        Raises ValueError if that leaves no room for text."""
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        if len(ids) <= max_tokens:
            return ids
        room = max_tokens - (self.num_added if add_special_tokens else 0)
        encoding = self._cut(text, room)
        ids = self._backend.post_process(encoding, None, add_special_tokens).ids
        return self._one_bos(ids) if add_special_tokens else ids

    @property
    def num_added(self) -> int:
        """Tokens that the model expects around a text."""
        return self._backend.num_special_tokens_to_add(False)

    def encode_pair(
        self, first: str, second: str, max_tokens: int | None = None, max_second: int | None = None
    ) -> list[int]:
        """Ids of two texts with what the model expects around them. Of the second as much, from its beginning, as fits
        into `max_tokens`, and at most `max_second` of its ids. Raises ValueError if that leaves no room for it."""
        added = self._backend.num_special_tokens_to_add(True)
        one = self._cut(first)
        room = None if max_tokens is None else max_tokens - added - len(one.ids)
        two = self._cut(second, max_second if room is None else min(room, max_second or room))
        return self._backend.post_process(one, two, True).ids

    def encode_chat(self, text: str) -> list[int]:
        """Ids of a rendered chat: BOS once if the model wants it, whether or not the template wrote it, no EOS."""
        return self._one_bos(self._encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The token alone, as text; a part of a character shows as U+FFFD."""
        return self.token_bytes[token_id].decode(errors="replace")

    def spelling(self, token_id: int) -> str:
        """The token as its vocabulary has it, such as "Ġthe"; empty where that has none."""
        return self._backend.id_to_token(token_id) or ""

    def special_texts(self) -> dict[str, int]:
        """Ids of special tokens by their text."""
        return {self.token_text(token_id): token_id for token_id in self.special_ids if token_id < self.vocab_size}

    def invalid_id(self, ids: Sequence[int]) -> int | None:
        """The first of `ids` that the model has no embedding for, None if all are fine."""
        if not ids or (min(ids) >= 0 and max(ids) < self.vocab_size):
            return None
        return next(token_id for token_id in ids if not 0 <= token_id < self.vocab_size)

    def digest(self) -> str:
        """Equal for equal vocabularies: workers that agree on it mean the same by an id."""
        vocab = sorted((i, token) for token, i in self._backend.get_vocab(with_added_tokens=True).items())
        return blake2b(json.dumps(vocab).encode(), digest_size=16).hexdigest()

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._encoding(text, add_special_tokens).ids

    def _cut(self, text: str, max_tokens: int | None = None) -> Encoding:
        """The first tokens of the text alone."""
        encoding = self._encoding(text, add_special_tokens=False)
        if max_tokens is not None:
            if max_tokens < 1:
                raise ValueError("no room is left for the text")
            encoding.truncate(max_tokens)
        return encoding

    def _encoding(self, text: str, add_special_tokens: bool) -> Encoding:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text has half a surrogate pair at character {error.start}") from None
        # Only the batch call frees the GIL; a long text would stall every stream of the process otherwise.
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]

    def _one_bos(self, ids: list[int]) -> list[int]:
        if not self.adds_bos:
            return ids
        assert self.bos_id is not None
        num_bos = next((i for i, token_id in enumerate(ids) if token_id != self.bos_id), len(ids))
        return ids if num_bos == 1 else [self.bos_id, *ids[num_bos:]]


def load_backend(path: Path) -> BackendTokenizer:
    try:
        return BackendTokenizer.from_file(str(path))
    except Exception as error:  # the only type that tokenizers raises
        raise ValueError(f"{path} is not a usable tokenizer: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file, {} if there is no such file. Raises ValueError if it holds no JSON object."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def read_special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token, … of tokenizer_config.json and of the older special_tokens_map.json, by name."""
    entries = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    tokens = {}
    for name, value in entries.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            tokens[name] = token
    return tokens


def apply_tokenizer_config(
    backend: BackendTokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """What transformers (5.x, TokenizersBackend) does with tokenizer_config.json after loading tokenizer.json: named
    special tokens become special, and explicit `add_bos_token` or `add_eos_token` replace the post-processor."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [t for t in special_tokens.values() if t not in added and backend.token_to_id(t) is not None]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    if "add_bos_token" in config or "add_eos_token" in config:
        bos = special_tokens.get("bos_token") if config.get("add_bos_token") else None
        eos = special_tokens.get("eos_token") if config.get("add_eos_token") else None
        set_bos_eos(backend, bos, eos)


def set_bos_eos(backend: BackendTokenizer, bos: str | None, eos: str | None) -> None:
    """Make the post-processor add `bos` before and `eos` after a text, where they are given."""
    tokens = [token for token in (bos, eos) if token is not None]
    backend.post_processor = processors.TemplateProcessing(
        single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
        pair=None,
        special_tokens=[(token, backend.token_to_id(token)) for token in dict.fromkeys(tokens)],
    )


def as_ids(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
