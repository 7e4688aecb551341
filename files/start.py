"""The first import of each script: ends it with one line if there is no folder for temporary files,
without which some of what torch imports raises an error."""

import sys
import tempfile

try:
    tempfile.gettempdir()
except FileNotFoundError as error:
    sys.exit(f"error: {error.strerror}; set TMPDIR to a folder with room")
