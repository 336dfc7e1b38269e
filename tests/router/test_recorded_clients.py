"""Kobold Lite's and SillyTavern's whole call sequences: connecting, counting tokens, generating, stopping.

They follow the clients' public sources: Lite's index.html, SillyTavern's src/endpoints/backends and tokenizers.
"""

import pytest
from isthmus.tests.router.recorded import JSON, Call, matches, replay

KEY = {**JSON, "Authorization": "Bearer secret"}
SAID = "Hi!"
CAPABILITIES = dict.fromkeys(
    (
        "protected", "txt2img", "vision", "audio", "transcribe", "multiplayer", "websearch", "tts", "embeddings",
        "music", "savedata", "router", "guidance", "jinja", "mcp",
    ),
    bool,
)  # fmt: skip
VERSION = {"result": "KoboldCpp", "version": "1.104", "llm": True, "admin": 0, **CAPABILITIES}
RESULT = {
    "results": [
        {
            "text": SAID,
            "tool_calls": [],
            "finish_reason": "stop",
            "logprobs": None,
            "prompt_tokens": int,
            "completion_tokens": 4,
        }
    ]
}
KOBOLD_EVENTS = (
    b'event: message\ndata: {"token": "H", "finish_reason": null}\n\n'
    b'event: message\ndata: {"token": "i", "finish_reason": null}\n\n'
    b'event: message\ndata: {"token": "!", "finish_reason": null}\n\n'
    b'event: message\ndata: {"token": "", "finish_reason": "stop"}\n\n'
)
MODEL = {
    "id": str, "object": "model", "created": int, "owned_by": str, "root": str, "parent": None, "max_model_len": 200,
}  # fmt: skip
MODELS = {"object": "list", "data": [MODEL, MODEL]}
COUNTED = {"value": 2, "ids": [int, int], "prompt": "ab"}

LITE_BODY = {
    "n": 1,
    "max_context_length": 6144,
    "max_length": 20,
    "rep_pen": 1.05,
    "temperature": 0.75,
    "top_p": 0.92,
    "top_k": 100,
    "top_a": 0,
    "typical": 1,
    "tfs": 1,
    "rep_pen_range": 360,
    "rep_pen_slope": 0.7,
    "sampler_order": [6, 0, 1, 3, 4, 2, 5],
    "memory": "{{[SYSTEM]}}Be kind.",
    "trim_stop": True,
    "genkey": "KCPP4711",
    "min_p": 0,
    "dynatemp_range": 0,
    "dynatemp_exponent": 1,
    "smoothing_factor": 0,
    "smoothing_curve": 1,
    "nsigma": 0,
    "banned_tokens": [],
    "render_special": False,
    "logprobs": True,
    "replace_instruct_placeholders": True,
    "presence_penalty": 0,
    "logit_bias": {},
    "adaptive_target": -1,
    "adaptive_decay": 0.9,
    "stop_sequence": ["{{[INPUT]}}", "{{[OUTPUT]}}"],
    "use_default_badwordsids": False,
    "bypass_eos": False,
    "prompt": "{{[INPUT]}}Hello{{[OUTPUT]}}",
}
LOGPROBS = {
    "content": [{"token": str, "logprob": float, "bytes": [int], "top_logprobs": list} for _ in SAID],
    "tokens": [str] * 3,
    "token_logprobs": [float] * 3,
    "top_logprobs": [dict] * 3,
    "text_offset": [0, 1, 2],
}
PERF = {
    "last_process": float,
    "last_eval": float,
    "last_token_count": 4,
    "last_input_count": int,
    "last_process_time": float,
    "last_eval_time": float,
    "last_process_speed": float,
    "last_eval_speed": float,
    "last_seed": int,
    "last_draft_success": 0,
    "last_draft_failed": 0,
    "total_gens": int,
    "stop_reason": 1,
    "total_img_gens": 0,
    "total_tts_gens": 0,
    "total_transcribe_gens": 0,
    "queue": 0,
    "idle": 1,
    "hordeexitcounter": 0,
    "uptime": float,
    "idletime": float,
    "quiet": True,
}

KOBOLD_LITE = [
    Call("GET", "/api/v1/model", {"result": "koboldcpp/tiny"}, headers=KEY),
    Call("GET", "/api/v1/info/version", {"result": "1.2.5"}, headers=KEY),
    Call("GET", "/api/v1/config/max_context_length", {"value": 200}, headers=KEY),
    Call("GET", "/api/extra/version", VERSION, headers=KEY),
    Call("GET", "/api/extra/true_max_context_length", {"value": 200}, headers=KEY),
    Call("GET", "/api/extra/preloadstory", b"{}", headers=KEY),
    Call("GET", "/sdapi/v1/sd-models", b"[]", headers={}),
    Call("POST", "/api/extra/tokencount", COUNTED, {"prompt": "ab", "special": False}, KEY),
    Call("POST", "/api/extra/generate/stream", KOBOLD_EVENTS, LITE_BODY, KEY),
    Call("POST", "/api/extra/last_logprobs", {"logprobs": LOGPROBS}, {"genkey": "KCPP4711"}, KEY),
    Call("GET", "/api/extra/perf", PERF, headers=KEY, varies=True),
    Call("POST", "/api/v1/generate", RESULT, {**LITE_BODY, "logprobs": False}, KEY),
    Call("POST", "/api/extra/generate/check", {"results": [{"text": SAID}]}, {"genkey": "KCPP4711"}, KEY),
    Call("POST", "/api/extra/abort", b'{"success":"false","done":"false"}', {"genkey": "KCPP4711"}, KEY),
]

LITE_CHAT_BODY = {
    **{name: value for name, value in LITE_BODY.items() if name not in ("memory", "prompt")},
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
    "continue_assistant_turn": True,
}
LITE_CALL = {"id": "call_1", "type": "function", "function": {"name": "dice", "arguments": "{}"}}
LITE_CONTINUED = [
    {"role": "user", "content": "Roll a die."},
    {"role": "assistant", "content": None, "tool_calls": [LITE_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "name": "dice", "content": '[{"type":"text","text":"4"}]'},
    {"role": "assistant", "content": "It is "},
]
LITE_LOGPROBS = {
    "content": [{"token": str, "logprob": float, "bytes": [int], "top_logprobs": [dict] * 5} for _ in SAID],
    "refusal": None,
}
LITE_MESSAGE = {"role": "assistant", "content": SAID, "refusal": None}
LITE_ANSWER = {
    "id": str,
    "created": int,
    "model": "tiny",
    "system_fingerprint": str,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": LITE_MESSAGE,
            "logprobs": LITE_LOGPROBS,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": dict,
}
KOBOLD_LITE_INSTRUCT = [
    Call("GET", "/api/v1/model", {"result": "koboldcpp/tiny"}, headers=KEY),
    Call("GET", "/api/extra/version", VERSION, headers=KEY),
    Call("POST", "/v1/chat/completions", bytes, {**LITE_CHAT_BODY, "stream": True}, KEY),
    Call("POST", "/v1/chat/completions", LITE_ANSWER, {**LITE_CHAT_BODY, "messages": LITE_CONTINUED}, KEY),
    Call("POST", "/api/extra/last_logprobs", {"logprobs": LOGPROBS}, {"genkey": "KCPP4711"}, KEY),
    Call("POST", "/api/extra/generate/check", {"results": [{"text": SAID}]}, {"genkey": "KCPP4711"}, KEY),
    Call("POST", "/api/extra/abort", b'{"success":"false","done":"false"}', {"genkey": "KCPP4711"}, KEY),
]

CLASSIC_BODY = {
    "prompt": "You: Hello\nBot:",
    "use_story": False,
    "use_memory": False,
    "use_authors_note": False,
    "use_world_info": False,
    "max_context_length": 200,
    "max_length": 20,
    "rep_pen": 1.1,
    "rep_pen_range": 600,
    "rep_pen_slope": 0,
    "temperature": 0.7,
    "tfs": 1,
    "top_a": 0,
    "top_k": 0,
    "top_p": 1,
    "min_p": 0.1,
    "typical": 1,
    "sampler_order": [0, 1, 2, 3, 4, 5, 6],
    "singleline": False,
    "use_default_badwordsids": False,
    "mirostat": 0,
    "mirostat_eta": 0.1,
    "mirostat_tau": 5,
    "grammar": "",
    "stop_sequence": ["\nYou:"],
}
SILLYTAVERN_CLASSIC = [
    Call("GET", "/api/v1/info/version", {"result": "1.2.5"}, headers={}),
    Call("GET", "/api/extra/version", VERSION, headers={}),
    Call("GET", "/api/v1/model", {"result": "koboldcpp/tiny"}, headers={}),
    Call("POST", "/api/extra/tokencount", COUNTED, {"prompt": "ab"}),
    Call("POST", "/api/extra/generate/stream", KOBOLD_EVENTS, CLASSIC_BODY),
    Call("POST", "/api/v1/generate", RESULT, CLASSIC_BODY),
    Call("POST", "/api/extra/abort", b'{"success":"false","done":"true"}', headers={}),
]

TEXT_BODY = {
    "prompt": "You: Hello\nBot:",
    "model": "tiny",
    "max_new_tokens": 20,
    "max_tokens": 20,
    "logprobs": 10,
    "temperature": 0.7,
    "top_p": 1,
    "typical_p": 1,
    "typical": 1,
    "sampler_seed": -1,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "top_k": 0,
    "skew": 0,
    "min_tokens": 0,
    "add_bos_token": True,
    "smoothing_factor": 0,
    "smoothing_curve": 1,
    "dry_allowed_length": 2,
    "dry_multiplier": 0.8,
    "dry_base": 1.75,
    "dry_sequence_breakers": '["\\n", ":", "\\"", "*"]',
    "dry_penalty_last_n": 0,
    "max_tokens_second": 0,
    "stopping_strings": ["\nYou:"],
    "stop": ["\nYou:"],
    "truncation_length": 200,
    "ban_eos_token": False,
    "skip_special_tokens": True,
    "top_a": 0,
    "tfs": 1,
    "mirostat_mode": 0,
    "mirostat_tau": 5,
    "mirostat_eta": 0.1,
    "custom_token_bans": "",
    "banned_strings": [],
    "api_type": "koboldcpp",
    "api_server": "http://127.0.0.1:2242",
    "legacy_api": False,
    "sampler_order": [6, 0, 1, 3, 4, 2, 5],
    "xtc_threshold": 0.1,
    "xtc_probability": 0,
    "nsigma": 0,
    "rep_pen": 1.1,
    "rep_pen_range": 600,
    "repetition_penalty_range": 600,
    "seed": -1,
    "guidance_scale": 1,
    "negative_prompt": "",
    "grammar_string": "",
    "grammar": "",
    "repeat_penalty": 1.1,
    "tfs_z": 1,
    "repeat_last_n": 600,
    "n_predict": 20,
    "num_predict": 20,
    "num_ctx": 200,
    "mirostat": 0,
    "ignore_eos": False,
    "n_probs": 10,
    "rep_pen_slope": 0,
    "stream": False,
}
PROPS = {
    "chat_template": str,
    "total_slots": int,
    "modalities": {"vision": False, "audio": False},
    "model_path": "tiny",
    "n_ctx": 200,
    "default_generation_settings": {"n_ctx": 200},
}
TIMINGS = dict.fromkeys(("queue_s", "prefill_s", "transfer_s", "decode_s"), float)
USAGE = {
    "prompt_tokens": int,
    "completion_tokens": 4,
    "total_tokens": int,
    "prompt_tokens_details": {"cached_tokens": int},
    "timings": TIMINGS,
}
HEAD = {"id": str, "created": int, "model": "tiny", "system_fingerprint": str}
TEXT_LOGPROBS = {
    "tokens": list("Hi!"), "token_logprobs": [float] * 3, "top_logprobs": [dict] * 3, "text_offset": [0, 1, 2],
}  # fmt: skip
TEXT_CHOICE = {"index": 0, "text": SAID, "logprobs": TEXT_LOGPROBS, "finish_reason": "stop", "stop_reason": None}
TEXT_ANSWER = {**HEAD, "object": "text_completion", "choices": [TEXT_CHOICE], "usage": USAGE}
SILLYTAVERN_KOBOLDCPP = [
    Call("GET", "/v1/models", MODELS),
    Call("POST", "/props", PROPS),
    Call("POST", "/api/extra/tokencount", COUNTED, {"prompt": "ab", "special": False}),
    Call("POST", "/v1/completions", TEXT_ANSWER, TEXT_BODY),
    Call("POST", "/v1/completions", bytes, {**TEXT_BODY, "stream": True}),
    Call("POST", "/api/extra/abort", b'{"success":"false","done":"true"}', headers={}),
]

CHAT_BODY = {
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}],
    "model": "tiny",
    "temperature": 1,
    "max_tokens": 20,
    "stream": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "top_p": 1,
    "logit_bias": {},
}
MESSAGE = {"role": "assistant", "content": SAID, "refusal": None}
CHAT_CHOICE = {"index": 0, "message": MESSAGE, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
CHAT_ANSWER = {**HEAD, "object": "chat.completion", "choices": [CHAT_CHOICE], "usage": USAGE}
SILLYTAVERN_OPENAI = [
    Call("GET", "/v1/models", MODELS, headers={"Authorization": "Bearer secret"}),
    Call("POST", "/v1/chat/completions", CHAT_ANSWER, CHAT_BODY, KEY),
    Call("POST", "/v1/chat/completions", bytes, {**CHAT_BODY, "stream": True}, KEY),
]

CLIENTS = {
    "kobold_lite": KOBOLD_LITE,
    "kobold_lite_instruct": KOBOLD_LITE_INSTRUCT,
    "sillytavern_koboldai_classic": SILLYTAVERN_CLASSIC,
    "sillytavern_text_koboldcpp": SILLYTAVERN_KOBOLDCPP,
    "sillytavern_chat_openai": SILLYTAVERN_OPENAI,
}


@pytest.mark.parametrize("client", CLIENTS)
def test_every_call_gets_what_its_client_reads(client):
    assert replay(CLIENTS[client], SAID) == []


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"a": 1}, {"a": str}),
        ({"a": 1, "b": 2}, {"a": int}),
        ({}, {"a": int}),
        ([1, 2], [int]),
        (True, int),
        (True, 1),
        (1, 1.0),
        ({"a": None}, {"a": {}}),
    ],
)
def test_a_difference_is_found(found, expected):
    assert not matches(found, expected)


def test_a_wrong_answer_is_reported():
    wrong = [Call("GET", "/api/v1/model", b"else"), Call("GET", "/api/v1/model", dict, status=201)]
    assert len(replay(wrong, SAID)) == 2
