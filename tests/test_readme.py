"""What the README shows runs as it stands there."""

import os
import re
import shutil
import sys

from running import ROOT, python

with open(os.path.join(ROOT, "README.md")) as file:
    README = file.read()


def test_python_runs_with_two_files_copied(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for name in ("wavinwav.py", "models/wavinwav.pt"):
        shutil.copy(os.path.join(ROOT, name), tmp_path)
    program = "".join(blocks) + "assert (secret_ - secret).norm() < 0.1 * secret.norm()"
    done = python("-c", program, cwd=tmp_path, shell="exec {}")
    assert done.returncode == 0, done.stderr


def test_files_that_are_named_exist():
    names = re.findall(r"[\w./]+\.(?:py|pt|md|html|png|sh|txt)\b", README)
    named = {name for name in names if "/" in name or name != name.upper()}
    missing = [name for name in named if not any(
        os.path.exists(os.path.join(ROOT, folder, name)) for folder in ("", "models"))]
    assert not missing


def test_every_script_is_in_the_list_of_files():
    scripts = {name for name in os.listdir(ROOT) if name.endswith(".py") and name != "conftest.py"}
    assert all(f"`{name}`" in README for name in scripts)


def test_wavinwav_needs_torch_and_the_standard_library_only():
    with open(os.path.join(ROOT, "wavinwav.py")) as file:
        names = set(re.findall(r"^(?:import|from) (\w+)", file.read(), re.M))
    assert names - set(sys.stdlib_module_names) == {"torch"}
