"""Whether a reservation could ever be served. Whether it can be now is the scheduler's question."""

from dataclasses import dataclass

from ..wire.messages import Reserve
from .sequence import Limits


@dataclass(frozen=True, slots=True)
class Bounds:
    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int

    def num_blocks_for(self, num_tokens: int, num_choices: int, *, draws: bool = True) -> int:
        """The prompt's full blocks, and for each choice one that takes the rest and the next token, if one is drawn."""
        return (num_tokens - (not draws)) // self.block_size + num_choices

    def limits(self, msg: Reserve) -> Limits:
        return Limits.of(msg.params, msg.eos_ids, len(msg.prompt) // 4, self.max_model_len)

    def refusal(self, msg: Reserve) -> str | None:
        """Why it will never be served; None if there is no reason."""
        return malformed(msg) or self._too_large(msg)

    def _too_large(self, msg: Reserve) -> str | None:
        prompt_len, num_output, num_choices = len(msg.prompt) // 4, len(msg.choices[0].output) // 4, len(msg.choices)
        draws = msg.params.max_tokens != 0
        if prompt_len + draws > self.max_model_len:
            return f"the prompt has {prompt_len} tokens, the context holds {self.max_model_len} with the output"
        if num_output and num_output >= self.limits(msg).max_output:
            return f"{num_output} tokens were produced, no more were asked for or fit"
        if num_choices > self.max_num_seqs:
            return f"{num_choices} choices, at most {self.max_num_seqs} run at once"
        needed = self.num_blocks_for(prompt_len + num_output, num_choices, draws=draws)
        if needed > self.num_blocks:
            return f"{num_choices} choices need {needed} blocks, the KV pool has {self.num_blocks}"
        return None


def malformed(msg: Reserve) -> str | None:
    """What is wrong with the message itself."""
    outputs = [choice.output for choice in msg.choices]
    if not outputs or len({choice.index for choice in msg.choices}) < len(outputs):
        return "no choices, or one of them twice"
    if any(len(ids) % 4 for ids in (msg.prompt, *outputs)):
        return "token ids that are not int32"
    if not msg.prompt:
        return "the prompt is empty"
    if len(outputs) > 1 and any(outputs):
        return "several choices of which one has output"
    if msg.remote and msg.params.max_tokens == 0:
        return "KV from elsewhere, and no token is wanted"
    if msg.pooling is not None and (msg.params.max_tokens != 0 or len(outputs) > 1 or outputs[0]):
        return "a vector of a prompt, and tokens after it"
    return None
