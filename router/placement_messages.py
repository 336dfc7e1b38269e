"""What workers are told of a placement: the messages that begin it."""

import msgspec

from ..wire.messages import Prefill, Reserve
from ..wire.sampling import SamplingParams
from .metrics import Path
from .sequence import Attempt, Entry


def path_of(attempt: Attempt) -> Path:
    if attempt.decode is None:
        return "prefill"
    return "decode" if attempt.prefill is None else "prefill-decode"


def reserve_message(attempt: Attempt, cost_blocks: int) -> Reserve:
    job = attempt.entry.job
    return Reserve(
        placement=attempt.placement,
        request_id=job.request_id,
        prompt=attempt.entry.prompt,
        choices=tuple(s.as_choice() for s in attempt.sequences.values()),
        params=worker_params(attempt.entry),
        prompt_index=job.prompt_index,
        cost_blocks=cost_blocks,
        remote=attempt.prefill is not None,
        eos_ids=job.eos_ids,
        pooling=job.pooling,
        salt=job.salt,
    )


def prefill_message(attempt: Attempt, transfer_id: str) -> Prefill:
    return Prefill(
        placement=attempt.placement,
        request_id=attempt.entry.job.request_id,
        token_ids=attempt.token_ids,
        first_token=attempt.num_cached_tokens,
        data_endpoint=attempt.data_endpoint,
        transfer_id=transfer_id,
        cost_tokens=attempt.num_tokens,
        prompt_len=attempt.entry.num_prompt_tokens if attempt.entry.num_prompt_logprobs is not None else 0,
        prompt_logprobs=attempt.entry.num_prompt_logprobs,
        pooling=attempt.entry.job.pooling,
        salt=attempt.entry.job.salt,
    )


def worker_params(entry: Entry) -> SamplingParams:
    """What is still to be done: a replay does not measure the prompt again."""
    params = entry.job.params
    if params.prompt_logprobs == entry.num_prompt_logprobs:
        return params
    return msgspec.structs.replace(params, prompt_logprobs=entry.num_prompt_logprobs)
