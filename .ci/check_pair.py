"""Check that torch and torchaudio in a report of `pip install --report` were built together."""

import json
import re
import sys

with open(sys.argv[1]) as file:
    packages = [item["metadata"] for item in json.load(file)["install"]]
found = {package["name"].lower(): package for package in packages}
version = {name: metadata["version"] for name, metadata in found.items()}
declared = [re.fullmatch(r"torch\s*\(?==\s*([\w.+]+)\)?", line.split(";")[0].strip())
            for line in found["torchaudio"].get("requires_dist", [])]
declared = [match[1] for match in declared if match]
if declared != [version["torch"].split("+")[0]]:
    sys.exit(f"torchaudio {version['torchaudio']} requires torch "
             f"{declared[0] if declared else '(no version)'}, but requirements.txt resolves to "
             f"torch {version['torch']}: narrow both in requirements.txt")
print(f"torch {version['torch']} and torchaudio {version['torchaudio']} match; "
      f"Python {sys.version.split()[0]}")
