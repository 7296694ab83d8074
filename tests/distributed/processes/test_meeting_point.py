"""The address at which processes meet: each mistake is one error, and none takes torch's timeout of two minutes."""

import time

import pytest

from framework.distributed.processes.meeting_point import meeting_point
from framework.errors import DistributedError


def test_a_host_and_a_port_are_returned():
    assert meeting_point({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}) == ("127.0.0.1", 29500)
    assert meeting_point({"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}) == ("localhost", 1)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": "localhost"}, "MASTER_PORT is ''"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'. It must be a port"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
        ({"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        ({"MASTER_ADDR": "no-such-host.invalid", "MASTER_PORT": "29500"}, "'no-such-host.invalid', which does not"),
    ],
)
def test_an_error_is_named_immediately(environ, words):
    begun = time.monotonic()
    with pytest.raises(DistributedError, match=words):
        meeting_point(environ, resolve_seconds=0.0)
    assert time.monotonic() - begun < 30


def test_a_name_that_resolves_a_little_later_is_waited_for(monkeypatch):
    answers = iter([OSError("not yet"), [("address",)]])

    def resolve(*_: object) -> object:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    assert meeting_point({"MASTER_ADDR": "pod-0", "MASTER_PORT": "29500"}, resolve_seconds=5.0) == ("pod-0", 29500)
