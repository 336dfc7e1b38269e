"""POST /v1/embeddings, and Kobold's of the same shape."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from .errors import ApiError, bad_field
from .pooling_request import (
    PoolingRequest,
    PoolingTask,
    check_num_inputs,
    given_ids,
    pooling_jobs,
    read_request,
    text_ids,
    usage_of,
)
from .prompt_forms import PROMPT, is_token_ids, split_prompts
from .served import Served


class EmbeddingRequest(PoolingRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    input: Annotated[Any, Meta(extra_json_schema=PROMPT)]
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or the bytes of little-endian float32 numbers in base64."""
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """Keep so many numbers of each vector, from its beginning; what is left is scaled to length 1 again. For models
    trained for it (Matryoshka)."""
    normalize: bool | None = None
    """Scale vectors to length 1; left out: as the model's folder says, which is true where it says nothing."""
    add_special_tokens: bool = True
    """Put around texts what the model expects (BOS, EOS)."""


class KoboldEmbeddingRequest(EmbeddingRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    truncate: bool = True
    """Cut texts to the context, from their end."""


def parse_embeddings(raw: bytes, request_id: str, served: Served) -> PoolingTask:
    """Raises ApiError. Safe in a thread, for large bodies."""
    return embedding_task(read_request(raw, EmbeddingRequest, served), request_id, served)


def parse_kobold_embeddings(raw: bytes, request_id: str, served: Served) -> PoolingTask:
    """Raises ApiError. Safe in a thread, for large bodies."""
    request = read_request(raw, KoboldEmbeddingRequest, served)
    if request.truncate and request.truncate_prompt_tokens is None:
        request = msgspec.structs.replace(request, truncate_prompt_tokens=-1)
    return embedding_task(request, request_id, served)


def embedding_task(request: EmbeddingRequest, request_id: str, served: Served) -> PoolingTask:
    """Raises ApiError."""
    if served.pooling.kind == "score":
        raise ApiError(400, f"model: {served.name} scores pairs of texts, it makes no embeddings", param="model")
    check_dimensions(request.dimensions, served)
    prompts: Sequence[str | list[int]] = split_prompts(request.input, "input")
    check_num_inputs(len(prompts), "input")
    is_single = isinstance(request.input, str) or is_token_ids(request.input)
    ids = [
        prompt_ids(prompt, "input" if is_single else f"input[{index}]", request, served)
        for index, prompt in enumerate(prompts)
    ]
    jobs = pooling_jobs(request.request_id or request_id, ids, request, served)
    head = {"object": "list", "model": request.model or served.name, "usage": usage_of(jobs)}
    normalize = served.pooling.normalize if request.normalize is None else request.normalize

    def render(vectors: Sequence[np.ndarray]) -> bytes:
        shaped = (shape_vector(vector, request.dimensions, normalize) for vector in vectors)
        data = [encode_entry(index, vector, request.encoding_format) for index, vector in enumerate(shaped)]
        return msgspec.json.encode({**head, "data": data})

    return PoolingTask(jobs, render)


def check_dimensions(dimensions: int | None, served: Served) -> None:
    """Raises ApiError (400)."""
    if dimensions is not None and served.hidden_size is not None and dimensions > served.hidden_size:
        raise bad_field("dimensions", f"{dimensions} is more than the {served.hidden_size} of the model")


def prompt_ids(prompt: str | list[int], param: str, request: EmbeddingRequest, served: Served) -> list[int]:
    """Raises ApiError (400)."""
    if isinstance(prompt, str):
        return text_ids(prompt, param, request, served, special=request.add_special_tokens)
    return given_ids(prompt, param, request, served)


def shape_vector(vector: np.ndarray, dimensions: int | None, normalize: bool) -> np.ndarray:
    """Its first `dimensions` numbers; fp32, of length 1 if that is asked for. One of zeros stays."""
    kept = vector[:dimensions]
    length = float(np.linalg.norm(kept.astype(np.float64))) if normalize else 0.0
    return (kept / length).astype(np.float32) if length > 0 else kept


def encode_entry(index: int, vector: np.ndarray, encoding_format: str) -> msgspec.Raw:
    """One by one: numbers as Python's own, of all vectors at once, would take ten times their room."""
    shown = b64encode(vector.astype("<f4").tobytes()).decode() if encoding_format == "base64" else vector.tolist()
    return msgspec.Raw(msgspec.json.encode({"object": "embedding", "index": index, "embedding": shown}))
