"""Every guard is worth its lines: taken out of a copy of the code, some test turns red."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import PATIENCE_SECONDS, ROOT, Figure


@dataclass(frozen=True)
class Guard:
    """Some text of a file that is replaced, and the tests of which one must notice."""

    name: str
    file: str
    text: str
    instead: str
    tests: str


CHECKPOINT, TRAIN, DATA = "tests/training/test_checkpoint.py", "tests/training/test_train.py", "tests/data/test_data.py"
LAYOUTS = "tests/data/test_layouts.py -k masks"
PREDICT = "tests/deployment/test_predict.py"
FAULTS = "tests/faults/"
SAME_BITS = f"{TRAIN} -k same_bits"
EXACT = f"{FAULTS}test_exactness.py -k micro_batches"
GUARDS = [
    Guard(
        "sha256 of each file", "training/checkpoint.py", "if digest(folder / name) != listed:", "if False:", CHECKPOINT
    ),
    Guard(
        "checksum of the manifest",
        "training/checkpoint.py",
        '!= f"{sha256(folder / MANIFEST)}  {MANIFEST}\\n"',
        "== 0",
        CHECKPOINT,
    ),
    Guard("no file but those listed", "training/checkpoint.py", "if names != set(files):", "if False:", CHECKPOINT),
    Guard(
        "rename into place",
        "training/checkpoint.py",
        "temporary.rename(final)",
        "shutil.copytree(temporary, final)",
        CHECKPOINT,
    ),
    Guard(
        "prune after the save",
        "training/checkpoint.py",
        "there = self.list()",
        "there = [*self.list()[-1:], *self.list()]",
        CHECKPOINT,
    ),
    Guard("all bad is an error", "training/checkpoint.py", "if refused:", "if False:", CHECKPOINT),
    Guard("other settings are refused", "training/provenance.py", "if changed:", "if False:", CHECKPOINT),
    Guard(
        "fingerprints of the data",
        "data/contents.py",
        'known.update(f"{content_hash(path)} {path.name!r}\\n".encode())',
        "pass",
        "tests/data/test_checks.py -k fingerprints",
    ),
    Guard(
        "what a network's folder says is known again",
        "training/provenance.py",
        'if name != "model.safetensors")',
        "if False)",
        "tests/training/test_provenance.py",
    ),
    Guard(
        "no change without effect",
        "training/provenance.py",
        "if is_setting and not any(key in made[name] and made[name][key] == now for name in reached):",
        "if False:",
        "tests/training/test_provenance.py",
    ),
    Guard("space is asked for", "storage.py", "if free < needed_bytes:", "if False:", f"{CHECKPOINT} -k space"),
    Guard("an allowed change counts", "training/trainer.py", "group.update(settings)", "pass", f"{TRAIN} -k reaches"),
    Guard(
        "no change without steps left",
        "training/trainer.py",
        'state.changes[-1]["step"] == state.step >= self.steps',
        "False",
        f"{TRAIN} -k cannot_change",
    ),
    Guard(
        "weights_only", "training/optimizer_file.py", "weights_only=True", "weights_only=False", "tests/test_layers.py"
    ),
    Guard(
        "a closed list of functions",
        "training/optimizer_file.py",
        "not re.fullmatch(GLOBALS, called)",
        "False",
        f"{FAULTS}test_hostile.py -k pickle",
    ),
    Guard(
        "no copies while unpickling",
        "training/optimizer_file.py",
        'if re.search("dict (?!EMPTY_TUPLE REDUCE )", " ".join([*steps, ""])):',
        "if False:",
        f"{FAULTS}test_hostile.py -k pickle",
    ),
    Guard(
        "tensors no larger than their file",
        "training/optimizer_file.py",
        "_bytes(optimizer) > size",
        "False",
        f"{FAULTS}test_hostile.py -k pickle",
    ),
    Guard(
        "a state is of the step it is called after",
        "training/checkpoint.py",
        'type(step) is not int or folder.name != f"checkpoint-{step:07d}"',
        "False",
        CHECKPOINT,
    ),
    Guard(
        "plain files only",
        "training/checkpoint.py",
        "path.is_symlink() or not path.is_file()",
        "False",
        f"{FAULTS}test_hostile.py -k link",
    ),
    Guard(
        "states beyond the newest do not count",
        "training/checkpoint.py",
        "there[: there.index(final) + 1]",
        "there",
        f"{FAULTS}test_hostile.py -k refused_state",
    ),
    Guard(
        "optimizer goes on",
        "training/trainer.py",
        'optimizer.load_state_dict(state.optimizer["optimizer"])',
        "pass",
        SAME_BITS,
    ),
    Guard(
        "moving average goes on",
        "training/trainer.py",
        'self.ema.module.load_state_dict(state.tensors["ema"])',
        "pass",
        f"{FAULTS}test_kills.py -k last_weights",
    ),
    Guard("best weights go on", "training/trainer.py", 'state.tensors.get("best", {})', "{}", SAME_BITS),
    Guard("data goes on at its step", "training/context.py", "first_step,\n", "0,\n", SAME_BITS),
    Guard("dropout from the step", "training/trainer.py", "torch.manual_seed(step_seed(", "(step_seed(", SAME_BITS),
    Guard(
        "pixels counted over processes",
        "training/trainer.py",
        'counts = self.accelerator.reduce(counts, "sum").clamp(min=1)',
        "counts = counts.clamp(min=1) * self.accelerator.num_processes",
        EXACT,
    ),
    Guard(
        "pixels counted over micro-batches",
        "training/trainer.py",
        "for batch in micro_batches]).sum(0)",
        "for batch in micro_batches])[0]",
        EXACT,
    ),
    Guard(
        "gradients start from zero",
        "training/trainer.py",
        "self.optimizer.zero_grad()",
        "pass",
        f"{FAULTS}test_exactness.py -k without_gradients",
    ),
    Guard("loss and gradient are finite", "training/trainer.py", "if votes[0]:", "if False:", f"{TRAIN} -k finite"),
    Guard(
        "stopping saves",
        "training/trainer.py",
        "or last or stop:",
        "or last:",
        f"{FAULTS}test_signals.py -k launcher",
    ),
    Guard(
        "TensorBoard hides what is done again",
        "training/tracking.py",
        '"purge_step": first_step',
        '"purge_step": None',
        f"{FAULTS}test_kills.py -k tensorboard",
    ),
    Guard(
        "a clock that was set back",
        "training/tracking.py",
        "if int(stamp) > latest:",
        "if False:",
        "tests/training/test_tracking.py",
    ),
    Guard(
        "leftovers of a kill go",
        "pipeline.py",
        "    remove_leftovers(folder)\n",
        "",
        f"{FAULTS}test_kills.py -k tuning",
    ),
    Guard(
        "states come from the first machine",
        "training/trainer.py",
        "from_main(accelerator, lambda: self.checkpoints.load(config.resume_from_checkpoint))",
        "self.checkpoints.load(config.resume_from_checkpoint)",
        f"{FAULTS}test_machines.py -k killed",
    ),
    Guard(
        "a share of its own for each process",
        "data/loader.py",
        "range(rank, len(dataset), world)",
        "range(0, len(dataset), world)",
        f"{FAULTS}test_exactness.py -k scores",
    ),
    Guard(
        "void counts in no score",
        "metrics.py",
        "torch.where(mask < UNLABELED, mask, classes)",
        "mask % classes",
        "tests/evaluation/test_metrics.py",
    ),
    Guard("order from seed and epoch", "data/sampler.py", "[self.seed, epoch, which]", "[self.seed, which]", DATA),
    Guard(
        "augmentation from its key",
        "data/transforms.py",
        "np.random.SeedSequence(list(key))",
        "np.random.SeedSequence([0])",
        DATA,
    ),
    Guard(
        "formats of a closed list",
        "data/images.py",
        "Image.open(path, formats=formats)",
        "Image.open(path)",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard(
        "no empty files and pipes",
        "data/images.py",
        "if not 0 < size <=",
        "if not size <=",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard(
        "bytes of a file",
        "data/images.py",
        "0 < size <= 8 * max_pixels + 1_000_000",
        "0 < size",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard("size before decoding", "data/images.py", "decoded_pixels(image) > max_pixels", "False", DATA),
    Guard("tiles of a TIFF", "visualize.py", ", width * height)", ", 0)", f"{DATA} -k bad_files"),
    Guard(
        "absolute names of videos",
        "deployment/media.py",
        "os.path.abspath(path), cv2",
        "path, cv2",
        f"{PREDICT} -k network",
    ),
    Guard("labels of the list", "data/masks.py", "if not (ids < 0).any():", "if True:", DATA),
    Guard(
        "labels below zero",
        "data/masks.py",
        "rows.clip(-1, LABELS)",
        "rows.clip(0, LABELS)",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard("one image in one split", "data/verify.py", 'if split == "val" and digest in seen:', "if False:", DATA),
    Guard(
        "labels are there",
        "data/verify.py",
        'check_labels(known["labels"], splits, config)',
        "pass",
        "tests/data/test_checks.py",
    ),
    Guard(
        "files that changed are read again",
        "data/verify.py",
        'known.get("sha256") == found',
        'known.get("sha256")',
        "tests/data/test_checks.py",
    ),
    Guard(
        "EXIF",
        "data/datasets.py",
        "if header.orientation != 1 and not tells:",
        "if False:",
        "tests/data/test_layouts.py -k rotated",
    ),
    Guard(
        "8 bits a channel",
        "data/images.py",
        "if image.mode in DEEP_MODES:",
        "if False:",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard(
        "strips of a TIFF",
        "data/tiff.py",
        "zlib.decompressobj().decompress(data, wanted)",
        "zlib.decompress(data)",
        "tests/data/test_images.py -k inflated",
    ),
    Guard(
        "bytes of an image",
        "data/arrays.py",
        "dtype.itemsize) > 8 * max_pixels + 1_000_000:",
        "dtype.itemsize) < 0:",
        "tests/data/test_images.py -k bad_images",
    ),
    Guard(
        "numbers that are none",
        "data/images.py",
        "not (finite := np.isfinite(image)).all():",
        "not (finite := np.isfinite(image)).any():",
        "tests/data/test_images.py -k bad_images",
    ),
    Guard(
        "checksums of a teacher's answers",
        "data/cache_files.py",
        "zlib.crc32(content) != self.checksum",
        "False",
        f"{FAULTS}test_caches.py -k damaged",
    ),
    Guard(
        "checksum of what a cache's file lists",
        "data/cache_files.py",
        'or listed != metadata["sha256"]',
        "",
        "tests/data/test_teacher_cache.py -k damage_is_found",
    ),
    Guard(
        "answers of one teacher in a folder",
        "data/teacher_cache.py",
        "self.compare()  # of several",
        "pass  # of several",
        "tests/data/test_teacher_cache.py -k begin_at_once",
    ),
    Guard(
        "who came first is asked",
        "data/teacher_cache.py",
        "if not (first and _linked(temporary, path)):",
        "if True:",
        "tests/data/test_teacher_cache.py -k begin_at_once",
    ),
    Guard(
        "what is repaired meanwhile stays",
        "data/teacher_cache.py",
        "self._read(path)  # another",
        "raise DamagedError(path)  # another",
        "tests/data/test_teacher_cache.py -k repaired_or_removed",
    ),
    Guard(
        "no aliases",
        "config/parse.py",
        "if self.check_event(yaml.AliasEvent):",
        "if False:",
        "tests/config/test_config.py",
    ),
    Guard("no key twice", "config/parse.py", "if key.value in seen:", "if False:", "tests/config/test_config.py"),
    Guard(
        "size of a config",
        "config/parse.py",
        "file.stat().st_size > MAX_CONFIG_BYTES",
        "False",
        f"{FAULTS}test_hostile.py -k yaml",
    ),
    Guard(
        "the lock",
        "storage.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/test_pipeline.py -k two_runs",
    ),
    Guard(
        "workers let the lock go",
        "storage.py",
        "os.register_at_fork(after_in_child=let_go)",
        "pass",
        f"{FAULTS}test_hostile.py -k orphan",
    ),
    Guard(
        "the launcher's death is noticed",
        "training/launcher.py",
        "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)",
        "pass",
        f"{FAULTS}test_signals.py -k launcher",
    ),
    Guard(
        "as many processes as asked for",
        "training/distributed.py",
        "if accelerator.num_processes < asked:",
        "if False:",
        "tests/test_pipeline.py -k fewer",
    ),
    Guard(
        "a lost process is named",
        "training/rank_failures.py",
        'if not isinstance(error, DistError) and "/gloo/" not in text and CLOSED_AFTER_TIMEOUT not in text:',
        "if True:",
        f"{FAULTS}test_signals.py -k limit",
    ),
    Guard(
        "the others are asked",
        "training/rank_failures.py",
        "lost = [other for other in lost if not store.check([keys[other]])]",
        "pass",
        f"{FAULTS}test_signals.py -k limit",
    ),
    Guard(
        "near chance",
        "training/teacher.py",
        "if scores.present > 1 and scores.skill < NEAR_CHANCE:",
        "if False:",
        "tests/test_pipeline.py -k chance",
    ),
    Guard(
        "layers beyond the weights",
        "models/network.py",
        "if next(layers) > 0:",
        "if False:",
        "tests/models/test_models.py -k layers",
    ),
    Guard(
        "a teacher's other files",
        "models/smp_files.py",
        "if name in config:",
        "if False:",
        "tests/models/test_models.py -k elsewhere",
    ),
    Guard(
        "numbers from each image",
        "models/smp_files.py",
        'transform.get("normalization", "standard")) != "standard":',
        'transform.get("normalization", "standard")) is None:',
        "tests/models/test_models.py -k refused_by_name",
    ),
    Guard(
        "no evaluation is overwritten",
        "evaluation/detailed.py",
        'if (wanted / "evaluation.json").exists():',
        "if False:",
        "tests/evaluation/test_evaluate_script.py -k overwritten",
    ),
]


def guards(names: Sequence[str], folder: Path) -> Figure:
    """Takes guards out, one at a time, and runs the tests that should notice."""
    copy = folder / "copy"
    for part in ("distill", "tests", "scripts"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    unnoticed = []
    for guard in (guard for guard in GUARDS if guard.name in names):
        path = copy / "distill" / guard.file
        whole = path.read_text()
        assert whole.count(guard.text) == 1, f"{guard.name}: {guard.text!r} stands {whole.count(guard.text)} times"
        path.write_text(whole.replace(guard.text, guard.instead))
        tests = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *guard.tests.split()]
        own = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
        environment = {key: value for key, value in os.environ.items() if "PYTEST_XDIST" not in key} | own
        try:
            code = subprocess.run(
                tests, cwd=copy, env=environment, capture_output=True, timeout=PATIENCE_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            code = 1  # a hang is noticed, too
        path.write_text(whole)
        if code != 1:  # 0: all passed; more: nothing was run
            unnoticed.append(f"{guard.name}: {guard.tests} ended with {code}")
    return Figure(
        "guards taken out one by one that no test noticed",
        "0",
        f"{len(unnoticed)} / {len(names)}",
        not unnoticed,
        unnoticed,
        {"guards": {guard.name: guard.tests for guard in GUARDS if guard.name in names}},
    )
