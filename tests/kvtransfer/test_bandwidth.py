"""The benchmark runs and reports every transport beside its peers."""

import pytest
from isthmus.bench.transfer import main


def test_a_tiny_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--max-bytes", "262144", "--bytes-a-run", "1048576", "--repeats", "1"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "pieces of" in line and "GB/s" in line]
    assert [line.split(" KiB")[0] for line in lines] == [
        "| shm, pieces of 64",
        "| zmq, pieces of 64",
        "| shm, pieces of 256",
        "| zmq, pieces of 256",
    ]
    assert all("GB/s socket" in line and "× memcpy" in line for line in lines)
