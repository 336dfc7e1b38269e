"""The target writes what its head is trained on: answers to prompts of many kinds, at several temperatures."""

import random
import time
from dataclasses import dataclass

from ...engine.speculation_config import SpeculationConfig
from ...text.chat_template import ChatTemplate
from ...text.tokenizer import Tokenizer
from ...wire.sampling import SamplingParams
from ..batch_decoder import Request
from ..sampled_text import chat_ids
from ..speculation_engines import EngineMaker
from .prompts import Prompt, PromptMaker
from .texts import Text

TEMPERATURES = (0.0, 0.7, 1.0)
ROUNDS_IN_FLIGHT = 6
"""Times the batch in a round of requests: the fewer, the oftener the batch runs dry; the more, the later answers become
prompts."""
MIN_OUTPUT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Amount:
    """Whichever is reached first ends the writing."""

    num_tokens: int
    """Of answers."""
    seconds: float


class Writer:
    def __init__(
        self, maker: EngineMaker, template: ChatTemplate | None, prompts: PromptMaker, *, max_output_tokens: int
    ) -> None:
        """`maker` says how many texts are written at once, and how long they may be."""
        self._tokenizer: Tokenizer = maker.tokenizer
        self._template, self._prompts = template, prompts
        self._max_prompt_tokens = maker.max_model_len - max_output_tokens
        self._max_output_tokens, self._batch = max_output_tokens, maker.max_num_seqs
        self._decoder = maker.decoder(SpeculationConfig())

    def write(self, amount: Amount, rng: random.Random) -> list[Text]:
        """In rounds, printing how fast."""
        texts: list[Text] = []
        start_s, elapsed_s, num_tokens = time.monotonic(), 0.0, 0
        while num_tokens < amount.num_tokens and elapsed_s < amount.seconds:
            texts += self._round(rng)
            num_tokens, elapsed_s = sum(len(text.output_ids) for text in texts), time.monotonic() - start_s
            print(f"{len(texts)} texts, {num_tokens} tokens of answers in {elapsed_s:.0f} s", flush=True)
        return texts

    def _round(self, rng: random.Random) -> list[Text]:
        asked = [self._ask(rng) for _ in range(ROUNDS_IN_FLIGHT * self._batch)]
        outputs = self._decoder.run([request for _, request in asked], self._batch).outputs
        for (prompt, _), output in zip(asked, outputs, strict=True):
            if prompt.use is not None:
                self._prompts.take(prompt, self._tokenizer.decode(output).strip())
        written = [Text(request.prompt_ids, output) for (_, request), output in zip(asked, outputs, strict=True)]
        return [text for text in written if len(text.output_ids) >= MIN_OUTPUT_TOKENS]

    def _ask(self, rng: random.Random) -> tuple[Prompt, Request]:
        """Of those prompts that are short enough."""
        while True:
            prompt = self._prompts.make()
            prompt_ids = chat_ids(self._tokenizer, self._template, prompt.text)
            if len(prompt_ids) <= self._max_prompt_tokens:
                break
        params = SamplingParams(
            temperature=rng.choice(TEMPERATURES),
            max_tokens=self._max_output_tokens,
            seed=rng.getrandbits(32),
            guidance=prompt.guidance,
        )
        return prompt, Request(prompt_ids, params)
