"""langchain-community's KoboldApiLLM, which can send no key."""

import pytest
import requests
from langchain_community.llms import KoboldApiLLM


def test_texts(keyless_url: str) -> None:
    llm = KoboldApiLLM(endpoint=keyless_url)
    assert llm.invoke("Say: Hello.") == "Hello."
    assert llm.invoke("Say: a#b", stop=["#"]) == "a"
    assert "".join(llm.stream("Say: Hello.")) == "Hello."
    assert KoboldApiLLM(endpoint=f"{keyless_url}/api", max_length=2).invoke("Say: abc") == "ab"


def test_errors(keyless_url: str, url: str) -> None:
    with pytest.raises(requests.HTTPError, match="400"):
        KoboldApiLLM(endpoint=keyless_url, temperature=-1).invoke("Say: Hello.")
    with pytest.raises(requests.HTTPError, match="401"):
        KoboldApiLLM(endpoint=url).invoke("Say: Hello.")
