"""Whether a request's grammar compiles: found out in threads of its own, so that neither the event loop nor the parsing
of other bodies waits for it."""

import asyncio

from ..text.grammar import GrammarError
from ..text.grammar_cache import GrammarCache
from ..wire.sampling import Guidance
from .errors import ApiError, bad_field

DEADLINE_S = 5.0


async def check_guidance(
    guidance: Guidance | None, field: str, grammars: GrammarCache, deadline_s: float = DEADLINE_S
) -> None:
    """Raises ApiError: 400 naming `field`, or 503 if other grammars are in the way."""
    if guidance is None:
        return
    compiling = grammars.get(guidance)
    try:
        await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(compiling)), deadline_s)
    except GrammarError as error:
        raise bad_field(field, str(error), code="invalid_grammar") from None
    except TimeoutError:
        if compiling.running():
            raise bad_field(field, f"takes more than {deadline_s:g} s to compile", code="invalid_grammar") from None
        raise ApiError(503, "other requests' grammars are being compiled", retry_after_s=deadline_s) from None
