"""evaluation/speed.py: it runs the command and prints what it measured."""

import re

from evaluation.speed import measure_speed
from helpers import INN


def test_measure_speed(capsys):
    measure_speed(INN, minutes=0.05, channels=2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["hide", "reveal"]
    for line in lines:
        speed, memory = re.search(r"([\d.]+) times real time.* (\d+) KiB", line).groups()
        assert float(speed) > 0 and float(memory) > 50_000
