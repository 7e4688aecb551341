"""Whether torch and torchaudio in a report of `pip install --report` were built together."""

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
    sys.exit(f"torchaudio {version['torchaudio']} declares torch "
             f"{declared[0] if declared else '(none)'}, and requirements.txt resolves to torch "
             f"{version['torch']}: no pair; bound both in requirements.txt")
print(f"a pair: torch {version['torch']}, torchaudio {version['torchaudio']}; "
      f"Python {sys.version.split()[0]}")
