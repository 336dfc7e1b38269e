"""POST /v1/completions."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from .completion_request import CompletionRequest
from .errors import ApiError
from .logprobs_json import completion_logprobs, joined
from .openai_events import ABORTED, DONE, ChunkTemplate, ends_of_aborted, error_event
from .openai_prompts import echo_logprobs, prompt_logprobs_of
from .openai_request import usage_of
from .served import Served
from .text_stream import ChoiceText, Generation, Piece, TextStream


class CompletionRenderer:
    """Writes a generation as text completions."""

    def __init__(self, request: CompletionRequest, generation: Generation, served: Served, now: int):
        """`now`: Unix time, seconds."""
        self._generation = generation
        self._num_returned = request.n
        self._with_ids = request.return_token_ids
        self._include_usage = request.include_usage
        self._continuous_usage = request.continuous_usage
        self._tokenizer = served.tokenizer
        self._as_ids = request.return_tokens_as_token_ids
        self._shows_logprobs = generation.num_logprobs is not None
        self._head: dict[str, Any] = {
            "id": f"cmpl-{generation.jobs[0].request_id}",
            "object": "text_completion",
            "created": now,
            "model": request.model or served.name,
            "system_fingerprint": served.system_fingerprint,
        }
        self._chunks = ChunkTemplate(
            self._head,
            b'"text":',
            b"",
            usage_null=self._include_usage,
            logprobs=self._piece_logprobs if self._shows_logprobs else None,
            with_ids=self._with_ids,
        )
        self.event = self._chunks.piece

    def opening(self, text: TextStream) -> bytes:
        """The prompts, where their text or tokens are asked for."""
        if self._continuous_usage:
            self._chunks.tell_usage(partial(usage_of, text))
        if not self._generation.echoes and not self._with_ids:
            return b""
        return b"".join([self._echo(text, index) for index in range(self._generation.num_choices)])

    def _echo(self, text: TextStream, index: int) -> bytes:
        more: dict[str, Any] = self._prompt_ids(index)
        if self._with_ids:
            more["token_ids"] = []
        if self._shows_logprobs and self._generation.echoes:
            more["logprobs"] = echo_logprobs(text, index, self._tokenizer, as_ids=self._as_ids)
        return self._chunks.text(index, self._generation.echo(index), more)

    def _prompt_ids(self, index: int) -> dict[str, Any]:
        return {"prompt_token_ids": self._generation.job_of(index).prompt_ids} if self._with_ids else {}

    def _piece_logprobs(self, piece: Piece) -> dict[str, Any]:
        offset = len(self._generation.echo(piece.index))
        return completion_logprobs(piece.logprobs, self._tokenizer, offset, as_ids=self._as_ids)

    def closing(self, text: TextStream) -> bytes:
        ends = b"".join([self.event(piece) for piece in ends_of_aborted(text)])
        return ends + (self._chunks.usage(usage_of(text)) if self._include_usage else b"") + DONE

    def error(self, error: ApiError) -> bytes:
        return error_event(error)

    def whole(self, text: TextStream) -> bytes:
        choices = best_choices(text.choices, self._generation.jobs[0].num_choices, self._num_returned)
        shown = [self._choice(index, choice, text) for index, choice in enumerate(choices)]
        return msgspec.json.encode({**self._head, "choices": shown, "usage": usage_of(text)})

    def _choice(self, index: int, choice: ChoiceText, text: TextStream) -> dict[str, Any]:
        return {
            "index": index,
            "text": self._generation.echo(choice.index) + "".join(choice.parts),
            "logprobs": self._choice_logprobs(choice, text) if self._shows_logprobs else None,
            "finish_reason": choice.finish_reason or ABORTED,
            "stop_reason": choice.stop_reason,
            **prompt_logprobs_of(text, choice.index, self._tokenizer),
            **({"token_ids": choice.token_ids} if self._with_ids else {}),
            **self._prompt_ids(choice.index),
        }

    def _choice_logprobs(self, choice: ChoiceText, text: TextStream) -> dict[str, Any]:
        offset = len(self._generation.echo(choice.index))
        own = completion_logprobs(choice.logprobs, self._tokenizer, offset, as_ids=self._as_ids)
        if not self._generation.echoes:
            return own
        return joined(echo_logprobs(text, choice.index, self._tokenizer, as_ids=self._as_ids), own)


def best_choices(choices: Sequence[ChoiceText], num_made: int, num_returned: int) -> list[ChoiceText]:
    """Of each prompt's `num_made` choices the `num_returned` with the highest mean logprob per token, best first; in
    their own order where all are returned."""
    if num_returned == num_made:
        return list(choices)
    by_prompt = [choices[start : start + num_made] for start in range(0, len(choices), num_made)]
    return [best for made in by_prompt for best in sorted(made, key=mean_logprob, reverse=True)[:num_returned]]


def mean_logprob(choice: ChoiceText) -> float:
    return choice.sum_logprobs / max(1, choice.num_tokens)
