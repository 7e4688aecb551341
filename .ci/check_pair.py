"""Whether the torch and the torchaudio in a report of `pip install --report` were built together."""

import json
import re
import sys

with open(sys.argv[1]) as file:
    found = {item["metadata"]["name"].lower(): item["metadata"] for item in json.load(file)["install"]}
version = {name: metadata["version"] for name, metadata in found.items()}
declared = [re.fullmatch(r"torch\s*\(?==\s*([\w.+]+)\)?", line.split(";")[0].strip())
            for line in found["torchaudio"].get("requires_dist", [])]
declared = [match[1] for match in declared if match]
if declared != [version["torch"].split("+")[0]]:
    sys.exit(f"torchaudio {version['torchaudio']} declares torch {declared[0] if declared else '(none)'}, and "
             f"requirements.txt resolves to torch {version['torch']}: no pair; bound both in requirements.txt")
print(f"a pair: torch {version['torch']}, torchaudio {version['torchaudio']}; Python {sys.version.split()[0]}")
