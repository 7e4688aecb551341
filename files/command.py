"""What the commands share: mistakes in one line, streams that may be closed, signals."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import time

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP")
          if hasattr(signal, name)]


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


def tell(text, stream):
    """Print a line, ignoring a closed stream."""
    try:
        print(one_line(text), file=stream, flush=True)
    except OSError:
        if stream is sys.stdout:
            discard_output()


@contextlib.contextmanager
def standard_output(done=""):
    """For writing to stdout. Raises StegoError if that fails, which begins with what is done."""
    try:
        yield
    except OSError as error:
        discard_output()
        raise StegoError(f"{done}the standard output takes no more ({error.strerror})") from error


def say(text):
    """Print a line to stdout. Raises StegoError if that fails."""
    with standard_output():
        print(text, flush=True)


def discard_output():
    """Point stdout at the null device, so that the flush at exit cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextlib.contextmanager
def mistakes_in_one_line(*more):
    """Exit with one line for what a user can mend: StegoError, and the types in `more`."""
    try:
        yield
    except (StegoError, *more) as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):  # torch's word
            raise
        sys.exit("error: there is not enough memory; raise the limit, or end what else runs")
    except OSError as error:  # of temporary files
        path = one_line(error.filename or "a temporary file")
        sys.exit(f"error: {path}: {error.strerror}; is there room, and the right to write?")


def on_ending_signals(handler):
    """Call handler(number, frame) at SIGINT, SIGTERM and SIGHUP, except those that the process was
    started to ignore, as by nohup."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


@contextlib.contextmanager
def noting_signals():
    """A list to which the numbers of ending signals are appended as they come. At the end, the
    former handlers are put back. Outside the main thread, where Python has no signals, it stays
    empty."""
    noted, former = [], {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) != signal.SIG_IGN:
                former[number] = signal.signal(number, lambda number, _: noted.append(number))
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

    on_ending_signals(stop)
    return stopped


@contextlib.contextmanager
def signals_deferred():
    """Let ending signals wait until the end of the block."""
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        yield
        return
    noted = []
    before = {number: signal.signal(number, lambda number, frame: noted.append(number))
              for number in ENDING if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in noted:
            signal.raise_signal(number)
