"""data.py: which files are found, which crops they give, and to which process."""

import itertools
import random

import numpy as np
import pytest
import soundfile
import torch

from files.command import StegoError
from helpers import voice
from training import data
from trainings import TINY, metrics, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voices")
    (folder / "deep").mkdir()
    for i in range(3):
        soundfile.write(folder / f"{i}.wav", voice(1, 16000, i), 16000)
        soundfile.write(folder / "deep" / f"{i}.flac", voice(1, 48000, i), 48000)
    return folder


def test_crops_are_what_the_file_has(folder):
    x, _ = soundfile.read(folder / "1.wav", dtype="float32")
    crop = data.read_crop(folder / "1.wav", random.Random(0), 4000, 16000).numpy()
    places = [n for n in range(len(x) - 4000 + 1) if x[n] == crop[0]]
    assert any(np.array_equal(x[n:n + 4000], crop) for n in places)
    longer = data.read_crop(folder / "1.wav", random.Random(0), 20000, 16000).numpy()
    assert np.array_equal(longer[:16000], x) and not longer[16000:].any()
    tone = torch.sin(torch.arange(48000) / 10)
    soundfile.write(folder.parent / "tone.wav", tone.numpy(), 48000)
    down = data.read_crop(folder.parent / "tone.wav", random.Random(0), 20000, 16000)
    assert down.shape == (20000,) and not down[16000:].any()
    assert (down[100:15900] - tone[::3][100:15900]).abs().max() < 0.01
    stereo = folder.parent / "stereo.wav"
    soundfile.write(stereo, np.stack([x, -x], 1), 16000)
    assert data.read_crop(stereo, random.Random(0), 4000, 16000).abs().max() < 1e-4
    x[5000] = np.inf
    soundfile.write(stereo, x, 16000, subtype="FLOAT")
    for name, message in (("stereo.wav", "NaN or infinite"), ("missing.wav", "does not exist")):
        with pytest.raises(StegoError, match=message):
            data.usable_crop(folder.parent / name, random.Random(0), 16000, 16000, 0)


@pytest.mark.parametrize("flag", ["--data_dir", "--hf_dataset"])
def test_one_file_makes_no_pair(folder, hub, tmp_path, flag):
    soundfile.write(tmp_path / "0.wav", voice(1, 16000, 0), 16000)
    speech = folder if flag == "--data_dir" else hub / "parquet"
    more = ["--hf_column", "speech"] * (flag == "--hf_dataset")
    with pytest.raises(SystemExit, match="too few audio files to validate on: 1, and a pair"):
        train(flag, speech, *more, *TINY, "--val_dir", tmp_path, "--out_dir", tmp_path / "run")


def test_items_of_other_kinds(tmp_path):
    """By the URL of a file system that fsspec knows, as paths on the hub are; empty ones."""
    fsspec = pytest.importorskip("fsspec")
    soundfile.write(tmp_path / "0.wav", voice(1, 16000, 0), 16000)
    content = (tmp_path / "0.wav").read_bytes()
    with fsspec.open("memory://0.wav", "wb") as file:
        file.write(content)
    assert data.content({"path": "memory://0.wav", "bytes": None}) == content
    for item in (None, {"path": None, "bytes": None}, {"path": None, "bytes": b""}):
        with pytest.raises(StegoError, match="empty"):
            data.content(item)


def test_pairs_depend_on_seed_and_number_alone(folder):
    files = data.find_audio(str(folder))
    pairs, again, other = (data.Pairs(files, 16000, 4000, seed) for seed in ("a", "a", "b"))
    for n in (5, 0):
        cover, secret, number, *_ = pairs[n]
        assert number == n and not torch.equal(cover, secret)
        assert torch.equal(cover, again[n][0]) and torch.equal(secret, again[n][1])
        assert not torch.equal(cover, other[n][0])
    assert len(data.sample(pairs, 21).unique(dim=0)) == 21
    louder = data.Pairs(files, 16000, 4000, "a", gain=12.0)
    changes = []
    for n in range(20):
        for x, y in zip(pairs[n][:2], louder[n][:2]):
            changes.append(20 * (y.norm() / x.norm()).log10())
            assert torch.allclose(y / y.norm(), x / x.norm(), atol=1e-6), "only its level"
    assert max(changes) < 12.01 and min(changes) > -12.01
    assert max(changes) > 8 and min(changes) < -8


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Two splits of parquet files with a real Audio column, one item of which is no audio; and the
    same as save_to_disk writes it."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hub")
    for i in range(12):
        soundfile.write(folder / "x.wav", voice(1, 16000, i), (16000, 24000)[i % 2])
        content = (folder / "x.wav").read_bytes() if i != 5 else b"no audio"
        if i % 4 == 0:
            items = []
        items.append({"bytes": content, "path": f"{i}.wav"})
        if i % 4 == 3:
            table = datasets.Dataset.from_dict({"speech": items, "text": ["words"] * 4})
            table = table.cast_column("speech", datasets.Audio())
            name = ("train-00000-of-00002", "train-00001-of-00002", "dev-00000-of-00001")[i // 4]
            (folder / "parquet").mkdir(exist_ok=True)
            table.to_parquet(folder / "parquet" / f"{name}.parquet")
    datasets.DatasetDict({"train": table, "dev": table}).save_to_disk(folder / "disk")
    return folder


@pytest.mark.parametrize("name", ["parquet", "disk"])
def test_a_dataset_by_name(hub, folder, tmp_path, capsys, name):
    train("--hf_dataset", hub / name, "--hf_column", "speech", "--hf_val_split", "dev", *TINY,
          "--steps", 8, "--out_dir", tmp_path)
    rows = metrics(tmp_path)
    assert (int(rows[-1]["unusable"]) > 0) == (name == "parquet")
    assert float(rows[-1]["val_stego_snr"]) > 20
    with pytest.raises(SystemExit):
        train("--data_dir", folder, "--out_dir", tmp_path, "--resume", "--steps", 12)
    assert "give either --data_dir or --hf_dataset" in capsys.readouterr().err


def test_a_column_of_numbers_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_dict({"audio": [[0.0, 0.5]] * 4})
    table.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(SystemExit, match="its column audio is not of audio files, but"):
        data.open_hub(str(tmp_path), None, "audio")


def test_each_epoch_has_an_order_of_its_own_and_resuming_keeps_it(hub):
    streams = data.open_hub(str(hub / "parquet"), None, "speech")
    pairs = data.HubPairs(streams["train"], "speech", 16000, 4000, "train 0", shuffled=1000)
    names = [item["path"] for item in itertools.islice(pairs.items(), 24)]
    epochs = [names[i:i + 8] for i in (0, 8, 16)]
    assert all(len(set(epoch)) == 8 for epoch in epochs) and epochs[0] != epochs[1] != epochs[2]
    first = list(itertools.islice(pairs.pairs(), 12))
    resumed = list(itertools.islice(pairs.pairs(first[3].number + 1), 8))
    for a, b in zip(first[4:], resumed, strict=True):
        assert torch.equal(a.cover, b.cover) and a[2:] == b[2:]


def test_too_many_unusable_items_end_the_run():
    class Broken:
        def set_epoch(self, epoch):
            pass

        def __iter__(self):
            return iter([{"audio": {"bytes": b"no audio", "path": None}}, {"audio": None}])

    pytest.importorskip("datasets")
    with pytest.raises(data.DataError, match="more than half of the items are unusable, the first"):
        next(data.HubPairs(Broken(), "audio", 16000, 4000, "x").pairs())
