"""GuidedSim with banned phrases, and an oracle that reads the whole text again after every token."""

from collections.abc import Sequence
from typing import Any

from isthmus.decode.phrase_ban import PhraseBans
from isthmus.engine.fake_engine import extend_history, has_state, mixed, next_state
from isthmus.tests.decode.guided_sim import TOKENS, GuidedSim
from isthmus.tests.decode.phrase_search import Search
from isthmus.tests.decode.router_sim import EOS, Request
from isthmus.tests.decode.toy_text import toy_tokenizer
from isthmus.wire.noise import philox_key

NO_STATE, FIRST_STATE = b"", bytes(8)


class PhraseSim(GuidedSim):
    def __init__(self, **options: Any):
        super().__init__(phrase_bans=PhraseBans(toy_tokenizer(TOKENS, [EOS])), **options)

    def expected(self, request: Request, choice: int) -> list[int]:
        params = request.params
        if params.guidance is not None or not params.banned_strings:
            return super().expected(request, choice)
        search = Search(TOKENS, params.banned_strings, [EOS])
        key = philox_key(params.seed & (2**64 - 1), 0, choice)
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else {EOS})
        limit = min(params.max_tokens or 10**9, self.max_model_len - len(request.prompt))
        output: list[int] = []
        states = [FIRST_STATE if has_state(params) else NO_STATE]
        bans: dict[int, set[int]] = {}
        epoch = num_released = 0
        while True:
            place = len(output)
            history = extend_history(0, [*request.prompt, *output])[-1]
            banned = (stops if place < params.min_tokens else frozenset()) | bans.get(place, set())
            output.append(self.engine._pick(mixed(history, states[-1], epoch), key, place, frozenset(banned)))
            states.append(next_state(states[-1], output[-1]))
            ends = len(output) == limit or (output[-1] in stops and place >= params.min_tokens)
            at = search.find(output, at_end=ends)
            if at is None and ends:
                return output
            if at is None:
                num_released = max(num_released, search.num_settled(output))
                continue
            at = max(at, num_released)
            bans = {place: ids for place, ids in bans.items() if place <= at}
            bans.setdefault(at, set()).add(output[at])
            del output[at:], states[at + 1 :]
            epoch += 1


def has_phrase(token_ids: Sequence[int], phrases: Sequence[str]) -> bool:
    return Search(TOKENS, phrases, [EOS]).find(token_ids, at_end=True) is not None
