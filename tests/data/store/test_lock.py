import threading

from framework.data.store.lock import locked


def test_a_second_one_is_told(tmp_path):
    path = tmp_path / "lock"
    with locked(path, wait=False) as first, locked(path, wait=False) as second:
        assert first and not second
    with locked(path, wait=False) as again:
        assert again
    assert not path.exists()


def test_who_waited_holds_a_lock_that_keeps_others_away(tmp_path):
    """The first removes its file when it ends; the second must not hold the lock of a file that is gone."""
    path = tmp_path / "lock"
    waiting, seen = threading.Event(), []

    def second() -> None:
        waiting.set()
        with locked(path, wait=True) as held, locked(path, wait=False) as third:
            seen.append((held, third, path.exists()))

    thread = threading.Thread(target=second)
    with locked(path, wait=True):
        thread.start()
        waiting.wait(timeout=60)
        # Until the other one stands before the lock.
        thread.join(timeout=0.2)
        assert not seen
    thread.join(timeout=60)
    assert seen == [(True, False, True)]
