"""The first import of each script. Ends it with one line if there is no folder for temporary files,
without which some of what torch imports raises an error; and lets Ctrl-C end it without a traceback
while torch is loaded."""

import os
import signal
import sys
import tempfile

try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    sys.exit(f"error: {error.strerror}; set TMPDIR to a folder with room")

script = os.path.realpath(getattr(sys.modules["__main__"], "__file__", ""))
if (script.startswith(os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + os.sep)
        and signal.getsignal(signal.SIGINT) == signal.default_int_handler):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
