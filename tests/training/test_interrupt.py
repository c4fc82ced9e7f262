"""What a signal is answered with."""

import os
import signal

import pytest

from biggan.training.interrupt import StopSignal


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_first_interruption_is_answered_at_once_and_the_second_ends_at_once(capfd):
    with StopSignal("micro-batch") as stop:
        send(signal.SIGINT)
        assert stop.stop
        answer = "stopping: finishing this micro-batch, then saving; Ctrl-C again to stop without saving"
        assert capfd.readouterr().err.split("\n") == ["", answer, ""]
        send(signal.SIGTERM)
        assert capfd.readouterr().err == ""
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_other_processes_and_requests_to_save_are_silent(capfd):
    with StopSignal() as stop:
        send(signal.SIGTERM)
        assert stop.stop
    with StopSignal("update") as stop:
        send(signal.SIGUSR1)
        assert stop.save
        assert not stop.stop
    assert capfd.readouterr() == ("", "")
