"""What the commands share: mistakes in one line, streams that may be closed, signals."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
          if hasattr(signal, name)
          and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN]  # as under nohup


class StegoError(Exception):
    """Bad input: one line that names the file and the remedy. Its cause, where there is one, is
    what a library or the model raised, such as `container.NoSecret`."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"error: {one_line(message)}; see {self.prog} --help\n")


def one_line(text):
    """A message as one line that every stream can take, whatever file names it contains."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def settle_streams():
    """Call this first. Opens the null device in the place of standard streams that are closed, so
    that no other file gets their numbers. sys.stdin and sys.stdout are None then."""
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")


def tell(text, stream=None):
    """Print a line, to stdout by default, ignoring a stream that is closed or full."""
    stream = stream or sys.stdout
    try:
        print(one_line(text), file=stream, flush=True)
    except OSError:
        discard(stream)


@contextlib.contextmanager
def standard_output(done=""):
    """For writing to stdout. Raises StegoError if that fails, which begins with what is done."""
    try:
        yield
    except OSError as error:
        discard(sys.stdout)
        raise StegoError(f"{done}the standard output takes no more ({error.strerror})") from error


def discard(stream):
    """Point a stream at the null device, so that the flush at exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def note(text):
    tell(f"note: {text}", sys.stderr)


@contextlib.contextmanager
def mistakes_in_one_line():
    """Exit with one line for what a user can mend."""
    try:
        yield
    except StegoError as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch's word
            raise
        sys.exit("error: there is not enough memory; raise the limit, or end what else runs")
    except OSError as error:
        path = one_line(error.filename or "a file")
        sys.exit(f"error: {path}: {error.strerror}; is there room, and the right to write?")


@contextlib.contextmanager
def noting_signals():
    """A list to which the numbers of ending signals are appended as they come. Outside the main
    thread, where Python has no signals, it stays empty."""
    noted, former = [], {}

    def add(number, frame):
        noted.append(number)

    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, add) for number in ENDING}
    try:
        yield noted
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)


def interrupt_on_signals():
    """Raise KeyboardInterrupt at an ending signal, so that temporary files are removed; a second
    one within 5 s (a closed terminal sends two) does not disturb that. Returns a list that is not
    empty afterwards."""
    stopped = []

    def stop(number, frame):
        if not stopped or time.monotonic() - stopped[-1] > 5:
            stopped.append(time.monotonic())
            raise KeyboardInterrupt

    for number in ENDING:
        signal.signal(number, stop)
    return stopped
