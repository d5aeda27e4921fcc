"""Measures what the README claims.

    distill benchmark loss            # KL + cross-entropy: plain PyTorch, by strips, by strips compiled
    distill benchmark step            # a training step with and without a teacher, and in plain PyTorch
    distill benchmark memory          # what such a step takes of memory, each in a process of its own
    distill benchmark loader          # how long a step waits for its images
    distill benchmark validation      # what scoring costs beside the forward passes
    distill benchmark terms           # what each term adds to a training step
    distill benchmark inference RUN   # how long teacher and student of a run take for an image
    distill benchmark export          # architectures whose ONNX files are right, at all sizes and batches

The contenders of a comparison take turns, so that a busy machine slows all of them; medians are printed, and ratios.
Memory is what the allocator held at most during a forward and backward pass, beyond the networks' outputs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from distill import models
from distill.batch import UNLABELED, VOID, Batch, Outputs, Target
from distill.cli import costs, memory, steps
from distill.config.data import DataConfig
from distill.config.networks import NetworkConfig
from distill.config.parse import parse
from distill.config.schema import ExportConfig
from distill.data import open_splits
from distill.deployment.latency import benchmark
from distill.deployment.onnx_export import export_onnx
from distill.errors import ConfigError, ExportError
from distill.losses import TERMS
from distill.losses.chunked import fused
from distill.losses.pixel import KD
from distill.losses.settings import KDConfig
from distill.losses.supervised import CrossEntropy
from distill.reporting import report
from distill.storage import write_json
from distill.training.objective import Distiller, build_objective
from distill.training.teacher import Teacher

# What is measured beside the defaults of every term.
VARIANTS = {
    "kd, reverse_kl": ["--kd.divergence=reverse_kl"],
    "kd, jensen_shannon": ["--kd.divergence=jensen_shannon"],
    "kd, standardized": ["--kd.standardize=true"],
    "kd, by entropy": ["--kd.confidence=entropy"],
    "kd, native stride": ["--kd.stride=native"],
}
CONFIG = Path(__file__).parents[1] / "configs" / "camvid_cpu.yaml"  # where this is not installed
SHAPES = ((8, 150, 256, 256), (4, 11, 360, 480), (8, 19, 512, 512))

ARCHITECTURES = ("unet", "fpn", "deeplabv3plus", "segformer", "linknet", "pan", "pspnet", "upernet")


def plain(student: Outputs, teacher: Outputs, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross-entropy + T² · KL as it is usually written."""
    s, t = student.upsampled(), teacher.upsampled()
    ce = F.cross_entropy(s, torch.where(mask < UNLABELED, mask.long(), -100), ignore_index=-100)
    kl = F.kl_div(F.log_softmax(s / temperature, 1), F.softmax(t / temperature, 1), reduction="none").sum(1)
    valid = mask != VOID
    return ce + (kl * valid).sum() / valid.sum() * temperature**2


def peak_bytes(step: Callable[[], object], device: torch.device) -> int:
    """The most that was allocated at once during a step, beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    now = peak = 0
    for event in trace.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def seconds(step: Callable[[], object], device: torch.device, cpu_time: bool) -> float:
    """Time of one step; with `cpu_time` that of this process alone, whatever else the machine does."""
    clock = time.process_time if cpu_time else time.perf_counter
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compare(shape: tuple[int, int, int, int], stride: int, args: argparse.Namespace) -> None:
    """Prints a line a contender for logits of one shape and stride."""
    n, classes, height, width = shape
    device = torch.device(args.device)
    torch.manual_seed(0)
    logits, theirs = (3 * torch.randn(n, classes, height // stride, width // stride, device=device) for _ in range(2))
    mask = torch.randint(0, classes, (n, height, width), device=device).byte()
    mask[:, : height // 10] = VOID
    target, terms = Target.of(mask), (CrossEntropy(), KD(KDConfig(temperature=args.temperature)))

    inputs = {d: (logits.to(d, copy=True).requires_grad_(), theirs.to(d)) for d in (torch.float32, torch.float64)}

    def gradient(loss: Callable[[Outputs, Outputs], torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        size, (x, y) = (height, width), inputs[dtype]
        return torch.autograd.grad(loss(Outputs(x, size, size), Outputs(y, size, size)), x)[0]

    def usual(student: Outputs, teacher: Outputs) -> torch.Tensor:
        return plain(student, teacher, mask, args.temperature)

    def chunked(student: Outputs, teacher: Outputs, compiled: bool = False) -> torch.Tensor:
        return fused(terms, (1.0, 1.0), student, teacher, target, compiled=compiled).total

    contenders: dict[str, Callable[[Outputs, Outputs], torch.Tensor]] = {"plain": usual, "by strips": chunked}
    if args.compile:
        contenders["by strips, compiled"] = lambda s, t: chunked(s, t, compiled=True)
        contenders["plain, compiled"] = torch.compile(usual)
    steps = {name: lambda loss=loss: gradient(loss, torch.float32) for name, loss in contenders.items()}
    exact = gradient(chunked, torch.float64)  # by strips, since plain float64 would take ten gigabytes

    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(args.repeat):
        for name, step in steps.items():
            times[name].append(seconds(step, device, args.cpu_time))
    print(f"{n}×{classes}×{height}×{width}, logits at stride {stride}")
    full = n * classes * height * width
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, step in steps.items():
        line = f"  {name:20} {1e3 * median[name]:8.1f} ms  {median['plain'] / median[name]:5.2f} x"
        line += f"  {peak_bytes(step, device) / full:6.2f} bytes a logit"
        line += f"  gradient error {float((step().double() - exact).norm() / exact.norm()):.1e}"
        print(line, flush=True)


def loss(args: argparse.Namespace) -> None:
    """KL + cross-entropy."""
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = "CPU time" if args.cpu_time else "wall time"
    print(
        f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, {clock}, T = {args.temperature}"
    )
    for stride in args.stride:
        for shape in args.shape:
            compare(shape, stride, args)


def terms(args: argparse.Namespace) -> None:
    """A training step (forward, backward) with cross-entropy and each other term, against cross-entropy alone."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    device, classes = torch.device(args.device), [str(i) for i in range(args.shape[1])]
    own = ["--config", args.config] if args.config else []
    config = parse(own)
    if config.data.multilabel:
        raise ConfigError("data.multilabel: terms are measured with one class a pixel; give another --config")
    torch.manual_seed(0)
    image = torch.randint(0, 256, (args.shape[0], 3, *args.shape[2:]), device=device).byte()
    mask = torch.randint(0, args.shape[1], (args.shape[0], *args.shape[2:]), device=device).byte()
    student, large = (models.build(n, classes).to(device) for n in (config.student, config.teacher))
    precision = torch.bfloat16 if config.mixed_precision == "bf16" else None

    def step_of(name: str) -> Callable[[], object]:
        wanted = (name.split(",")[0], "cross_entropy")
        chosen = [f"--{term}.weight={int(term in wanted)}" for term in TERMS] + VARIANTS.get(name, [])
        chosen.append("--cross_entropy.class_weights=null")  # they are those of other classes
        distiller = Distiller(student, build_objective(parse([*own, *chosen]), student, large))
        distiller.to(device).train()
        outputs = Teacher(large, precision)(Batch(image, mask, []), distiller.objective.features)

        def step() -> None:
            with torch.autocast(device.type, precision, enabled=precision is not None):
                loss = distiller(image, outputs, Target.of(mask))
            loss.total.backward()
            distiller.zero_grad(set_to_none=True)

        return step

    steps = {name: step_of(name) for name in [*TERMS, *VARIANTS]}
    steps["teacher"] = lambda: Teacher(large, precision)(Batch(image, mask, []))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(args.repeat + 1):
        for name, step in steps.items():
            elapsed = seconds(step, device, args.cpu_time)
            if repeat:
                times[name].append(elapsed)
    median = {name: statistics.median(values) for name, values in times.items()}
    clock = "CPU time" if args.cpu_time else "wall time"
    machine = f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads"
    print(f"{machine}, {clock}, {args.config or 'the defaults'}")
    print(f"{'x'.join(map(str, args.shape))}; cross-entropy alone {1e3 * median['cross_entropy']:.0f} ms a step")
    for name, value in median.items():
        what = "the teacher's forward pass" if name == "teacher" else f"with {name}"
        print(f"  {what:28} {value / median['cross_entropy']:5.2f} x")


def inference(args: argparse.Namespace) -> None:
    """Teacher and student of a run: milliseconds an image, ratios, sizes."""
    config = parse(["--config", str(args.folder / "config.yaml"), *(f"--data.root={root}" for root in args.data_root)])
    splits = open_splits(config.data)
    pair = {}
    for name, settings in (("teacher", config.teacher), ("student", config.student)):
        pair[name] = models.load(args.folder / name, splits.classes, settings.mean, settings.std, None, splits.image)
    names = {"student": "model.onnx", "student, 8 bits": "model.int8.onnx"}
    files = {name: path for name, file in names.items() if (path := args.folder / "student" / file).is_file()}
    image = splits.val.read(0)[0]
    found = benchmark(pair, files, image, args.threads, args.repeat, args.compile, args.cpu_time)
    print("\n".join(report.latency(found)))
    if args.output:
        write_json(args.output, found.to_json())


def export(args: argparse.Namespace) -> None:
    """Architectures × sizes × batches: which ONNX files do what the network does."""
    scenes = open_splits(DataConfig(synthetic_train=1, synthetic_val=3)).val
    for arch in args.arch:
        torch.manual_seed(0)
        network = models.build(NetworkConfig(arch=arch, encoder_name=args.encoder), list(map(str, range(10))))
        with TemporaryDirectory() as scratch:
            try:
                proof = export_onnx(network, Path(scratch) / "model.onnx", scenes, ExportConfig(), {})
            except ExportError as error:
                print(f"{arch:14} {error}")
                continue
        print(
            f"{arch:14} right on {len(proof.shapes):2} shapes{' (one size)' * bool(proof.fixed_size):11} largest "
            f"difference {proof.max_abs_diff:.1e}, same class {100 * proof.argmax_agreement:.4f} %",
            flush=True,
        )


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """`8x150x256x256`: images, classes, height, width."""
    images, classes, height, width = map(int, text.split("x"))
    return images, classes, height, width


def main(argv: Sequence[str] | None = None, prog: str = "distill benchmark") -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Measure what the README claims.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("loss", help="KL + cross-entropy: plain PyTorch against strips")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--stride", type=int, nargs="+", default=[4, 1], help="strides of the logits")
    command.add_argument("--temperature", type=float, default=1.0)
    command.add_argument("--repeat", type=int, default=5)
    command.add_argument("--compile", action="store_true", help="also what torch.compile makes of both")
    command.add_argument("--shape", type=parse_shape, nargs="+", default=SHAPES, help="such as 8x150x256x256")
    command.add_argument("--threads", type=int, help="of this process; torch's choice if not given")
    command.add_argument("--cpu-time", action="store_true", help="for a busy machine; with --threads 1")
    command.set_defaults(run=loss)
    command = commands.add_parser("terms", help="what each term adds to a training step")
    command.add_argument("--config", default=str(CONFIG) if CONFIG.is_file() else None, help="%(default)s if not given")
    command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    command.add_argument("--shape", type=parse_shape, default=(8, 11, 192, 256), help="images, classes, height, width")
    command.add_argument("--repeat", type=int, default=5)
    command.add_argument("--threads", type=int, help="of this process; torch's choice if not given")
    command.add_argument("--cpu-time", action="store_true", help="for a busy machine; with --threads 1")
    command.set_defaults(run=terms)
    command = commands.add_parser("inference", help="how long teacher and student of a run take for an image")
    command.add_argument("folder", type=Path, help="a finished run")
    command.add_argument("--data-root", nargs=1, default=[], help="that of the run if not given")
    command.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    command.add_argument("--repeat", type=int, default=20)
    command.add_argument("--compile", action="store_true", help="also what torch.compile makes of both")
    command.add_argument("--cpu-time", action="store_true", help="for a busy machine; with --threads 1")
    command.add_argument("--output", type=Path, help="JSON file for the numbers; printed only if not given")
    command.set_defaults(run=inference)
    command = commands.add_parser("export", help="architectures whose ONNX files are right, at all sizes and batches")
    command.add_argument("--arch", nargs="+", default=ARCHITECTURES)
    command.add_argument("--encoder", default="resnet18")
    command.set_defaults(run=export)
    steps.add_commands(commands)
    memory.add_command(commands)
    costs.add_command(commands)
    args, flags = parser.parse_known_args(argv)
    if hasattr(args, "measure"):
        steps.measure(args, flags, sys.argv[1:] if argv is None else argv)
    elif flags:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    else:
        args.run(args)
    return 0
