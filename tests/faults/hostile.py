"""Hostile files: none runs code, fetches something, eats memory, hangs the run or changes a file outside its folder."""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import giant_files
import hostile_media
import torch
import watch
from bad_files import BAD, SETTINGS, draw
from conftest import tiny_config
from harness import Figure, Launch
from hostile_media import CLEAN
from states import checkpoints, state

from distill import models
from distill.cli import run_here as main
from distill.config.parse import parse
from distill.config.schema import Config
from distill.data import check_splits, open_splits
from distill.data.images import read_image
from distill.storage import sha256, write_json
from distill.training.checkpoint import CHECKSUM, MANIFEST

MEMORY_MB, OVER_CLEAN_MB, SECONDS = 300, 500, 60  # a file's own memory, or beyond what a clean one takes
CLASSES = ["a", "b"]


class Evil:
    """What unpickles to a file named after the variable MARKER: proof that code ran."""

    def __reduce__(self):
        return os.system, ('touch "$MARKER"',)


def zipped(content: bytes) -> bytes:
    """A pickle in the archive that torch.save writes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


class Calls:
    """What unpickles to a call of a function that `weights_only` allows."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def copies() -> bytes:
    """A pickle of 240 kB that copies a dict of ten thousand entries thirty thousand times."""
    fill = b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(10_000))
    copy = b"h\0h\1\x85R"  # OrderedDict(the dict)
    return b"\x80\2ccollections\nOrderedDict\nq\0}q\1(" + fill + b"u](" + copy * 30_000 + b"e."


def saved(value: object) -> bytes:
    """What torch.save makes of it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def bomb() -> bytes:
    """An archive of a few megabytes whose pickle is a gigabyte; made fast, since its making counts as time, too."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w") as file:
            for _ in range(1024):
                file.write(bytes(1 << 20))
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def forged(folder: Path, name: str, content: bytes) -> None:
    """Loads a state one of whose files was replaced, with a manifest and checksum that agree."""
    checkpoints(folder).save(state(1))
    place = folder / "checkpoint-0000001"
    (place / name).write_bytes(content)
    manifest = json.loads((place / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": sha256(place / name)}
    write_json(place / MANIFEST, manifest)
    (place / CHECKSUM).write_text(f"{sha256(place / MANIFEST)}  {MANIFEST}\n")
    checkpoints(folder).load()


def manifest(folder: Path, content: str) -> None:
    """Loads a state whose manifest was replaced, with a checksum that agrees."""
    checkpoints(folder).save(state(1))
    place = folder / "checkpoint-0000001"
    (place / MANIFEST).write_text(content)
    (place / CHECKSUM).write_text(f"{sha256(place / MANIFEST)}  {MANIFEST}\n")
    checkpoints(folder).load()


def linked(folder: Path, name: str, target: str) -> None:
    """Loads a state one of whose files is a link."""
    checkpoints(folder).save(state(1))
    path = folder / "checkpoint-0000001" / name
    path.unlink()
    path.symlink_to(target)
    checkpoints(folder).load()


def teacher(folder: Path, change: Callable[[Path], object], **config) -> None:
    """Loads a teacher whose folder was tampered with."""
    folder.mkdir()
    network = Config().student
    network.encoder_name = "tu-test_resnet"
    models.save(models.build(network, CLASSES), folder)
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    change(folder)
    models.load(folder, CLASSES, (0, 0, 0), (1, 1, 1))


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    a_pickle_more(folder)


def a_pickle_more(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def settings(folder: Path, text: str | bytes) -> None:
    """Reads a file of settings."""
    folder.mkdir()
    path = folder / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    parse(["--config", str(path)])


def giant_settings(folder: Path) -> None:
    folder.mkdir()
    (folder / "c.yaml").touch()
    os.truncate(folder / "c.yaml", 1 << 30)
    parse(["--config", str(folder / "c.yaml")])


def data(folder: Path, name: str) -> None:
    """Looks at a data set with a bad file."""
    BAD[name][0](draw(folder))
    config = tiny_config(folder / "run", data__root=folder, **SETTINGS)
    check_splits(open_splits(config.data), config.data)


def deep(folder: Path, make: Callable[[Path], object]) -> None:
    """Reads an image of six channels."""
    folder.mkdir()
    make(folder / "image")
    read_image(folder / "image", 50_000_000, 6)


def array(path: Path) -> None:
    """A NumPy file of 100,000×100,000 pixels, most of them a hole."""
    header = repr({"descr": "<u2", "fortran_order": False, "shape": (100_000, 100_000, 6)}).ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode())
    os.truncate(path, 10 + len(header) + 12 * 10**10)


def webp(folder: Path) -> None:
    """A WebP of 50 bytes that claims 16,383 × 16,383 pixels."""
    size = (16382).to_bytes(3, "little")
    chunk = b"VP8X" + (10).to_bytes(4, "little") + b"\x02\0\0\0" + size + size
    chunk += b"ANIM" + (6).to_bytes(4, "little") + bytes(6)
    (draw(folder) / "train/images/scene_2.jpg").write_bytes(
        b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk
    )
    config = tiny_config(folder / "run", data__root=folder, **SETTINGS)
    check_splits(open_splits(config.data), config.data)


def victim(folder: Path, name: str) -> None:
    """Starts a run in a folder one of whose files is a link to somebody else's."""
    theirs, run = folder / "theirs", folder / "run"
    run.mkdir(parents=True)
    theirs.write_text("precious")
    (run / "config.yaml").touch()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(theirs)
    try:
        code = main(tiny_config(run, kd__weight=0.0, cross_entropy__weight=1, teacher__max_train_steps=1))
        if code:
            raise ValueError("refused")
    finally:
        if theirs.read_text() != "precious":
            Path(os.environ["MARKER"]).touch()


PICKLES = {"a pickle": pickle.dumps(Evil()), "a pickle in an archive": zipped(pickle.dumps(Evil()))}
NESTED = "[" * 100_000
HOSTILE: dict[str, Callable[[Path], object]] = {
    **{
        f"{kind} as {name} of a state": lambda folder, name=name, content=content: forged(folder, name, content)
        for name in ("optimizer.pt", "model.safetensors", "best.safetensors")
        for kind, content in PICKLES.items()
    },
    "a bomb as optimizer.pt of a state": lambda folder: forged(folder, "optimizer.pt", bomb()),
    **{
        f"{kind} as optimizer.pt of a state": lambda folder, make=make: forged(folder, "optimizer.pt", make())
        for kind, make in (
            ("a pickle of 6 GB of zeros", lambda: zipped(pickle.dumps({"optimizer": Calls(bytearray, 6 * 10**9)}, 2))),
            ("a pickle of 6 GB in the latest protocol", lambda: zipped(pickle.dumps(Calls(bytearray, 6 * 10**9)))),
            ("a pickle of thirty thousand copies", lambda: zipped(copies())),
            ("a pickle of a number spread over 8 GB", lambda: saved({"state": {0: torch.zeros(1).expand(2 * 10**9)}})),
        )
    },
    "a header of 2^60 bytes in safetensors": lambda folder: forged(
        folder, "model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"
    ),
    "a deep manifest": lambda folder: manifest(folder, NESTED),
    "a manifest of 100 MB": lambda folder: manifest(folder, json.dumps("x" * 100_000_000)),
    "a link to a device in a state": lambda folder: linked(folder, "model.safetensors", "/dev/zero"),
    "a link out of a state": lambda folder: linked(folder, "optimizer.pt", "/etc/passwd"),
    "a pickle as a teacher's weights": lambda folder: teacher(
        folder, lambda f: (f / "model.safetensors").write_bytes(PICKLES["a pickle"])
    ),
    "a pickle instead of a teacher's weights": lambda folder: teacher(folder, only_a_pickle),
    **{
        f"a teacher of class {name}": lambda folder, name=name: teacher(folder, lambda _: None, _model_class=name)
        for name in ("from_pretrained", "encoders", "__builtins__", "os.system")
    },
    "a teacher that wants weights from the network": lambda folder: teacher(
        folder, lambda _: None, encoder_name="resnet18", encoder_weights="imagenet"
    ),
    "a teacher whose encoder is on the network": lambda folder: teacher(
        folder, lambda _: None, encoder_name="tu-hf-hub:nobody/nothing"
    ),
    "a teacher of gigabytes": lambda folder: teacher(folder, lambda _: None, decoder_segmentation_channels=4096),
    "a teacher of 300,000 layers": lambda folder: teacher(folder, lambda _: None, layers=[300_000, 1, 1, 1]),
    "a teacher of 90,000 layers": lambda folder: teacher(folder, lambda _: None, layers=[90_000, 1, 1, 1]),
    "a teacher with a pickle elsewhere": lambda folder: teacher(
        folder, a_pickle_more, checkpoint_path=str(folder / "pytorch_model.bin")
    ),
    "a deep list of class names": lambda folder: teacher(folder, lambda f: (f / "id2label.json").write_text(NESTED)),
    "a YAML tag that applies": lambda folder: settings(
        folder, "seed: !!python/object/apply:os.system ['touch $MARKER']"
    ),
    "a YAML tag that builds": lambda folder: settings(folder, "seed: !!python/object/new:os.system ['touch $MARKER']"),
    "a YAML tag that names": lambda folder: settings(folder, "seed: !!python/name:os.system"),
    "YAML aliases": lambda folder: settings(
        folder, "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    ),
    "deep YAML": lambda folder: settings(folder, NESTED),
    "a YAML key that is a list": lambda folder: settings(folder, "? [a, b]\n: 1"),
    "YAML that names a class": lambda folder: settings(folder, "kd: {class_path: os.system, init_args: {command: ls}}"),
    "YAML that names a class in options": lambda folder: settings(
        folder, "student: {options: {class_path: subprocess.Popen, init_args: {args: [touch, x]}}, learning_rate: -1}"
    ),
    "YAML that takes a device for a section": lambda folder: settings(folder, "data: /dev/zero"),
    "YAML that reads itself": lambda folder: settings(folder, f"config: {folder / 'c.yaml'}"),
    "a YAML file of 1 GB": giant_settings,
    "a YAML file that is a device": lambda folder: parse(["--config", "/dev/zero"]),
    "YAML in other bytes": lambda folder: settings(folder, b"seed: \xff\xfe\0"),
    "code among the augmentations": lambda folder: settings(folder, "data: {augmentations: os.system}"),
    **{
        name: lambda folder, name=name: data(folder, name)
        for name in BAD
        if "bomb" in name or "link" in name or name in ("a pipe", "a huge file", "a PostScript program")
    },
    "a bomb of a WebP": webp,
    "a bomb of a TIFF of six channels": lambda folder: deep(folder, lambda path: giant_files.tile(path, 6)),
    "a huge array": lambda folder: deep(folder, array),
    "a lock that is a link": lambda folder: victim(folder, ".lock"),
    "settings that are a link": lambda folder: victim(folder, "config.yaml"),
    **hostile_media.HOSTILE,
}


def hostile(names: Sequence[str], folder: Path) -> Figure:
    """Gives each file to the code that reads it, in a process of its own that is watched with its children."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {name: next((kind for kind in CLEAN if name.startswith(kind)), "") for name in names}
    clean = {kind: _watched(kind, folder / f"clean{i}") for i, kind in enumerate(sorted(set(kinds.values()) - {""}))}
    failures = [f"{kind}, a clean one: {told['error']}" for kind, told in clean.items() if told["error"]]
    most, network = 0.0, set()
    for i, name in enumerate(names):
        told = _watched(name, folder / str(i))
        grown = told["grown_mb"] - (clean[kinds[name]]["grown_mb"] if kinds[name] else 0.0)
        most = max(most, grown)
        network.add(told["network"])
        if told["late"]:
            failures.append(f"{name}: still at it after {SECONDS} s")
        elif told["asked"]:
            failures.append(f"{name}: asked the network")
        elif told["ran"]:
            failures.append(f"{name}: ran code or changed a file of somebody else")
        elif grown > (OVER_CLEAN_MB if kinds[name] else MEMORY_MB):
            failures.append(f"{name}: took {grown:.0f} MB")
        elif told["error"] is None:
            failures.append(f"{name}: was accepted")
    if watch.UNWATCHED in network:
        print(f"hostile: the network is {watch.UNWATCHED}", file=sys.stderr)
    return Figure(
        "hostile files (pickles, YAML, images, videos, ONNX, teachers, links) that ran code, asked the network, hung "
        f"or took {MEMORY_MB} MB, or {OVER_CLEAN_MB} MB more than a clean one",
        "0",
        f"{len(failures)} / {len(names)}",
        not failures,
        failures,
        {"most_memory_mb": round(most), "network": "; ".join(sorted(network))},
    )


def _watched(name: str, folder: Path) -> dict[str, Any]:
    """What a file does to a process and its children."""
    marker, report, log = (folder.with_suffix(suffix) for suffix in (".marker", ".json", ".log"))
    environment = {"MARKER": str(marker), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    launch = Launch(_meet, (name, folder, report), 1, log, environment)
    children: dict[int, float] = {}
    end = time.monotonic() + SECONDS
    while launch.running and time.monotonic() < end:
        watch.children_peaks_mb(launch.ranks[0].pid, children)
        time.sleep(0.02)
    late = launch.running
    launch.kill()
    told = {"error": None, "grown_mb": 0.0 if late else float("inf"), "asked": False, "network": "no report"}
    if report.exists():
        told |= json.loads(report.read_text())
    told["grown_mb"] += sum(children.values())
    return told | {"ran": marker.exists(), "late": late}


def _meet(name: str, folder: Path, report: Path) -> None:
    """In a process of its own: what the file does to memory, and the error that ends it."""
    network = watch.Network(report.with_suffix(".strace"))
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))  # a fuse for the machine
    Path("/proc/self/clear_refs").write_text("5")  # starts the measurement of the peak anew
    before, error = watch.peak_mb(), None
    try:
        {**HOSTILE, **CLEAN}[name](folder)
    except (Exception, SystemExit) as problem:
        error = f"{type(problem).__name__}: {problem}"
    told = {"error": error, "grown_mb": watch.peak_mb() - before, "asked": network.asked(), "network": network.how}
    report.write_text(json.dumps(told))


def ask(how: str, namespace: bool, report: Path) -> None:
    network = watch.Network(report.with_suffix(".strace"), namespace)
    if how == "OpenCV":
        del os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"]  # with which it may only open files
        cv2.VideoCapture("http:127.0.0.1:9?.mp4", cv2.CAP_FFMPEG)
    elif how == "a child":
        code = "import socket; socket.getaddrinfo('example.com', 80)"
        subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    report.write_text(json.dumps([network.how, network.asked()]))
