"""Signals as a question."""

import os
import signal
import threading

import pytest

from subl_jax.engine.preemption import preemption_notice


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_notice_and_its_handler_comes_back(number):
    before = signal.getsignal(number)
    with preemption_notice() as told:
        assert not told()
        os.kill(os.getpid(), number)
        assert told()
        os.kill(os.getpid(), signal.SIGTERM)  # a second one is no haste
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # a background job of a shell ignores it
    with pytest.raises(KeyboardInterrupt), preemption_notice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_notebook_thread_has_no_signals():
    found = []

    def inside():
        with preemption_notice() as told:
            found.append(told())

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [False]
