import pytest
from isthmus.router.fake_core import FakeCore
from isthmus.tests.router.edge import TOKENIZER, ask, byte_tokenizer, ids, saying
from isthmus.text.chat_template import ChatTemplate

USER = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}


def tokenize(body, path="/tokenize", **served_with):
    return ask(FakeCore(), "POST", path, json=body, served_with=served_with)


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
def test_text_is_counted_with_what_the_model_expects_before_it(path):
    bos = {"tokenizer": byte_tokenizer(bos=True)}
    body = tokenize({"prompt": "a b", "model": "tiny"}, path, **bos).json()
    assert body == {"count": 4, "max_model_len": 200, "tokens": [256, *ids("a b")], "token_strs": None}
    plain = {"prompt": "a b", "add_special_tokens": False, "return_token_strs": True}
    body = tokenize(plain, path, **bos).json()
    assert (body["tokens"], body["token_strs"]) == (ids("a b"), ["a", "Ġ", "b"])


TOLD = {"chat_template": ChatTemplate("{{ tools }}|{{ messages }}|{{ add_generation_prompt }}", {})}


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
def test_a_conversation_has_the_tokens_that_a_chat_has(more):
    core = saying("ok")
    body = {"messages": USER, **more}
    ask(core, "POST", "/v1/chat/completions", json={**body, "max_tokens": 1}, served_with=TOLD)
    assert tokenize(body, **TOLD).json()["tokens"] == core.streams[0].job.prompt_ids


def test_tools_are_part_of_a_conversation():
    tokens = tokenize({"messages": USER, "tools": [TOOL]}, **TOLD).json()["tokens"]
    assert "'name': 'f'" in TOKENIZER.decode(tokens)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": USER}, "prompt"),
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "temperature": 1}, "temperature"),
        ({"prompt": "a", "model": "other"}, "model"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
)
def test_what_cannot_be_tokenized_is_named(body, param):
    reply = tokenize(body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (404 if param == "model" else 400, param)


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
def test_tokens_read_as_all_of_their_text(path):
    reply = ask(FakeCore(), "POST", path, json={"tokens": [*ids("ab"), 258], "model": "alias"})
    assert reply.json() == {"prompt": "ab<|im_end|>"}
    wrong = ask(FakeCore(), "POST", path, json={"tokens": [9999]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "tokens")
