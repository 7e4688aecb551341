"""evaluation/speed.py: that it measures, and tells what; no times."""

import re
import subprocess
import sys

import pytest

from evaluation import speed as bench
from helpers import INN, ROOT


def test_speed(capsys):
    bench.measure_speed(INN, [(0.05, 2)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["hide", "reveal"]
    for line in lines:
        assert "0.05 minutes of stereo at 16000 Hz" in line
        assert float(re.search(r"had (\d+) MiB", line)[1]) > 50


def test_recomputation_saves_memory(capsys):
    bench.measure_memory(seconds=0.1)
    out = capsys.readouterr().out
    kept, again = (float(x) for x in re.findall(r"peak +(\d+) MiB", out))
    before = float(re.search(r"which (\d+) MiB", out)[1])
    assert kept - before > 2 * (again - before)
    assert "ratio" in out


@pytest.mark.parametrize("words, complaint", [
    ([], "one of the arguments --speed --memory is required"),
    (["--speed", "--model", "none.pt"], "none.pt does not exist")])
def test_faults_are_told_in_one_line(words, complaint):
    done = subprocess.run([sys.executable, "-m", "evaluation.speed", *words], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode and done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and complaint in done.stderr
