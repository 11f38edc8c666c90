"""Vital threads: an error in one ends the process, however busy the others are."""

import subprocess
import sys
import textwrap

from workers.runtime.vital_thread import VitalThread


def test_an_error_is_passed_on_with_the_threads_name_and_returning_is_none() -> None:
    ends: list[tuple[str, str]] = []

    def fail() -> None:
        raise ValueError("no more")

    for name, body in (("good", lambda: None), ("bad", fail)):
        thread = VitalThread(name, body, lambda name, error: ends.append((name, str(error))))
        thread.start()
        thread.join(10)
    assert ends == [("bad", "no more")]


def test_the_process_ends_with_its_vital_thread_though_others_are_stuck() -> None:
    program = textwrap.dedent(
        """
        import threading
        from workers.runtime.vital_thread import VitalThread

        def fail():
            raise ValueError("no more")

        VitalThread("decode", fail).start()
        threading.Event().wait()
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "decode" in ended.stdout + ended.stderr
