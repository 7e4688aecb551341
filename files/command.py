"""What the commands share: mistakes in one line, streams that may be closed, signals."""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time

ENDING = [getattr(signal, name) for name in (  # signals that end a process, and can be caught
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM",
    "SIGPROF", "SIGXCPU", "SIGIO", "SIGPWR", "SIGSTKFLT") if hasattr(signal, name)]


class StegoError(Exception):
    """Bad input, told in one line that names the file and the remedy. Its cause, where there is
    one, is what a library or the model raised, such as `container.NoSecret`."""


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, without the usage."""

    def error(self, message):
        self.exit(2, f"error: {one_line(message)}; see {self.prog} --help\n")


def one_line(text):
    """A message that may have any file's name in it, as one line that every stream can take."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def settle_streams():
    """To be called first. A file that is opened must not get the number of a stream that was
    closed, nor a note go to another stream: those that are closed lead to the null device.
    sys.stdin and sys.stdout stay None then."""
    with contextlib.suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) < 3:
            pass
        os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")


def tell(text, stream):
    """Print a line, though nobody may hear it: what takes hours must not end for that."""
    try:
        print(one_line(text), file=stream, flush=True)
    except OSError:
        if stream is sys.stdout:
            discard_output()


@contextlib.contextmanager
def standard_output():
    """For what writes there. Raises StegoError where it takes no more."""
    try:
        yield
    except OSError as error:
        discard_output()
        raise StegoError(f"the standard output takes no more ({error.strerror})") from error


def say(text):
    """Print a line on the standard output. Raises StegoError where it takes no more."""
    with standard_output():
        print(text, flush=True)


def discard_output():
    """What is left for a standard output that takes no more is not tried again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


@contextlib.contextmanager
def mistakes_in_one_line(*more):
    """Ends the process with one line for what a user can mend: StegoError, and `more`."""
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
        path = one_line(error.filename or tempfile.gettempdir())
        sys.exit(f"error: {path}: {error.strerror}; is there room, and the right to write?")


def on_ending_signals(handler):
    """Call handler(number, frame) for every signal that would end the process, but for those that
    it was started to ignore, as nohup does."""
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def interrupt_on_signals():
    """Raise KeyboardInterrupt at an ending signal, so that temporary files are removed, which a
    second one (a terminal that is closed sends two) must not disturb. Returns a list in which there
    is something after that."""
    stopped = []

    def stop(number, frame):
        if number not in (signal.SIGINT, signal.SIGTERM):
            return signal.raise_signal(signal.SIGTERM)  # which waits while a process starts
        if not stopped or time.monotonic() - stopped[-1] > 5:
            stopped.append(time.monotonic())
            raise KeyboardInterrupt

    on_ending_signals(stop)
    return stopped
