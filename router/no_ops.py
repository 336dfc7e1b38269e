"""Request fields that are accepted and do nothing, and those that are known but not built. No other is ignored."""

from typing import Any, NamedTuple


class NoOp(NamedTuple):
    kind: type
    why: str
    """Nothing is missed, for the page of routes: "does nothing: …"."""


NO_OPS: dict[str, NoOp] = {
    "user": NoOp(str, "names the end user, for a provider's abuse reports"),
    "safety_identifier": NoOp(str, "names the end user, for a provider's abuse reports"),
    "metadata": NoOp(dict, "labels for a provider's dashboard"),
    "store": NoOp(bool, "keeps the answer at a provider"),
    "service_tier": NoOp(str, "chooses a provider's price"),
    "prompt_cache_key": NoOp(str, "a hint to a provider's cache; prefixes are found by their content here"),
    "prompt_cache_retention": NoOp(str, "a hint to a provider's cache"),
    "max_tool_calls": NoOp(float, "limits a provider's own tools, of which there are none"),
    "parallel_tool_calls": NoOp(bool, "shapes tool calls, which only chats have"),
    "include_reasoning": NoOp(bool, "asks for reasoning apart from the text; only chats have it apart"),
    "use_story": NoOp(bool, "KoboldAI United's own story, which a server without one cannot add"),
    "use_memory": NoOp(bool, "KoboldAI United's own memory, which a server without one cannot add"),
    "use_authors_note": NoOp(bool, "KoboldAI United's own author's note, which a server without one cannot add"),
    "use_world_info": NoOp(bool, "KoboldAI United's own world info, which a server without one cannot add"),
    "quiet": NoOp(bool, "keeps the request out of KoboldCpp's console; prompts are never logged here"),
    "negative_prompt": NoOp(str, "a text for guidance_scale, which is refused unless it is neutral"),
    "guided_decoding_backend": NoOp(str, "chooses one of several implementations; there is one"),
    "api_type": NoOp(str, "tells SillyTavern's own server which backend it talks to"),
    "api_server": NoOp(str, "tells SillyTavern's own server where the backend is"),
    "max_context_length": NoOp(float, "on /v1, the context length SillyTavern has already cut the prompt to"),
    "truncation_length": NoOp(float, "the context length SillyTavern has already cut the prompt to"),
    "num_ctx": NoOp(float, "the context length SillyTavern has already cut the prompt to"),
}
"""Fields accepted at any value of their type."""

NOT_BUILT: dict[str, tuple[Any, ...]] = {
    "top_logprobs": (0,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "singleline": (False,),
    "legacy_api": (False,),
    "frmtadsnsp": (False,),
    "frmtrmblln": (False,),
    "frmtrmspch": (False,),
    "frmttriminc": (False,),
    "truncate_prompt_tokens": (),
    "spaces_between_special_tokens": (True,),
    "detokenize": (True,),
    "add_bos_token": (True,),
    "min_keep": (0, 1),
    "best_of": (1,),
    "num_beams": (1,),
    "min_length": (0,),
    "speculative_ngram": (False,),
    "guidance_scale": (1, 0),
    "do_sample": (True,),
    "encoder_repetition_penalty": (1,),
    "penalty_alpha": (0,),
    "repetition_decay": (0,),
    "max_tokens_second": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": ([],),
    "images": ([],),
    "prediction": (),
    "web_search_options": (),
    "documents": ([],),
    "chat_template": (),
    "thread": (),
    "context_management": ({}, {"edits": []}),
    "mcp_servers": ([],),
    "reasoning_effort": ("", "none"),
    "verbosity": ("", "medium"),
    "echo": (False,),
    "mm_processor_kwargs": ({},),
    "kv_transfer_params": (),
    "container": (),
    "inference_geo": (),
    "speed": ("standard",),
    "diagnostics": (),
    "moderation": (),
}
"""Known fields outside sampling that are not built: the values that ask for nothing. `None` is always one."""

WHY = {
    "chat_template": "chats are rendered by the server's template, which --chat-template sets",
    "thread": "nothing is kept between requests; send the whole conversation",
}
"""Why a field is known but not built, and what to do, where there is something to say."""


def asks_for_nothing(name: str, value: Any) -> bool:
    """Whether a field of NOT_BUILT has a value that changes nothing. 0 is not false, and 1 is not true."""
    return value is None or any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in NOT_BUILT[name]
    )
