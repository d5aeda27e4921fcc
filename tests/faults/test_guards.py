"""Every guard is worth its lines: taken out of a copy of the code, some test turns red."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import PATIENCE_SECONDS, ROOT, Figure


@dataclass(frozen=True)
class Guard:
    """Some text of a file that is replaced, and the tests of which one must notice."""

    name: str
    file: str
    text: str
    instead: str
    tests: str


CHECKPOINT, TRAIN, DATA = "tests/test_checkpoint.py", "tests/test_train.py", "tests/test_data.py"
PREDICT = "tests/test_predict.py"
FAULTS = "tests/faults/"
SAME_BITS = f"{TRAIN} -k same_bits"
EXACT = f"{FAULTS}test_exactness.py -k micro_batches"
GUARDS = [
    Guard("sha256 of each file", "checkpoint.py", "if _digest(folder / name) != digest:", "if False:", CHECKPOINT),
    Guard(
        "checksum of the manifest",
        "checkpoint.py",
        '!= f"{sha256(folder / MANIFEST)}  {MANIFEST}\\n"',
        "== 0",
        CHECKPOINT,
    ),
    Guard("no file but those listed", "checkpoint.py", "if names != set(files):", "if False:", CHECKPOINT),
    Guard(
        "rename into place", "checkpoint.py", "temporary.rename(final)", "shutil.copytree(temporary, final)", CHECKPOINT
    ),
    Guard(
        "prune after the save",
        "checkpoint.py",
        "there = self.list()",
        "there = [*self.list()[-1:], *self.list()]",
        CHECKPOINT,
    ),
    Guard("all bad is an error", "checkpoint.py", "if refused:", "if False:", CHECKPOINT),
    Guard("other settings are refused", "provenance.py", "if changed:", "if False:", CHECKPOINT),
    Guard(
        "fingerprints of the data",
        "data/contents.py",
        'known.update(f"{content_hash(path)} {path.name!r}\\n".encode())',
        "pass",
        "tests/test_checks.py -k fingerprints",
    ),
    Guard(
        "what a network's folder says is known again",
        "provenance.py",
        'if name != "model.safetensors")',
        "if False)",
        "tests/test_provenance.py",
    ),
    Guard(
        "no change without effect",
        "provenance.py",
        "if is_setting and not any(key in made[stage] and made[stage][key] == now for stage in stages):",
        "if False:",
        "tests/test_provenance.py",
    ),
    Guard("space is asked for", "checkpoint.py", "if free < needed_bytes:", "if False:", f"{CHECKPOINT} -k space"),
    Guard("an allowed change counts", "state.py", "group.update(settings)", "pass", f"{TRAIN} -k reaches"),
    Guard(
        "no change without steps left",
        "state.py",
        'state.changes[-1]["step"] == state.step >= wanted.max_train_steps',
        "False",
        f"{TRAIN} -k cannot_change",
    ),
    Guard("weights_only", "optimizer_file.py", "weights_only=True", "weights_only=False", "tests/test_layers.py"),
    Guard(
        "a closed list of functions",
        "optimizer_file.py",
        "not re.fullmatch(GLOBALS, called)",
        "False",
        f"{FAULTS}test_hostile.py -k pickle",
    ),
    Guard(
        "no copies while unpickling",
        "optimizer_file.py",
        'if re.search("dict (?!EMPTY_TUPLE REDUCE )", " ".join([*steps, ""])):',
        "if False:",
        f"{FAULTS}test_hostile.py -k pickle",
    ),
    Guard(
        "tensors no larger than their file",
        "optimizer_file.py",
        "_bytes(optimizer) > size",
        "False",
        f"{FAULTS}test_hostile.py -k pickle",
    ),
    Guard(
        "a state is of the step it is called after",
        "checkpoint.py",
        'type(step) is not int or folder.name != f"checkpoint-{step:07d}"',
        "False",
        CHECKPOINT,
    ),
    Guard(
        "plain files only",
        "checkpoint.py",
        "path.is_symlink() or not path.is_file()",
        "False",
        f"{FAULTS}test_hostile.py -k link",
    ),
    Guard(
        "states beyond the newest do not count",
        "checkpoint.py",
        "there[: there.index(final) + 1]",
        "there",
        f"{FAULTS}test_hostile.py -k refused_state",
    ),
    Guard(
        "optimizer goes on", "state.py", 'optimizer.load_state_dict(state.optimizer["optimizer"])', "pass", SAME_BITS
    ),
    Guard(
        "moving average goes on",
        "state.py",
        'ema.module.load_state_dict(state.tensors["ema"])',
        "pass",
        f"{FAULTS}test_kills.py -k last_weights",
    ),
    Guard("best weights go on", "state.py", 'state.tensors.get("best", {})', "{}", SAME_BITS),
    Guard("data goes on at its step", "train.py", "        start_step,\n", "        0,\n", SAME_BITS),
    Guard("dropout from the step", "train.py", "torch.manual_seed(step_seed(", "(step_seed(", SAME_BITS),
    Guard(
        "pixels counted over processes",
        "train.py",
        'counts = accelerator.reduce(counts, "sum").clamp(min=1)',
        "counts = counts.clamp(min=1) * accelerator.num_processes",
        EXACT,
    ),
    Guard(
        "pixels counted over micro-batches",
        "train.py",
        "for batch in micro_batches]).sum(0)",
        "for batch in micro_batches])[0]",
        EXACT,
    ),
    Guard(
        "gradients start from zero",
        "train.py",
        "training.optimizer.zero_grad()",
        "pass",
        f"{FAULTS}test_exactness.py -k without_gradients",
    ),
    Guard("loss and gradient are finite", "train.py", "if votes[0]:", "if False:", f"{TRAIN} -k finite"),
    Guard(
        "stopping saves", "train.py", "done == steps or stop:", "done == steps:", f"{FAULTS}test_signals.py -k launcher"
    ),
    Guard(
        "TensorBoard hides what is done again",
        "tracking.py",
        '"purge_step": first_step',
        '"purge_step": None',
        f"{FAULTS}test_kills.py -k tensorboard",
    ),
    Guard(
        "a clock that was set back",
        "tracking.py",
        "if int(stamp) > latest:",
        "if False:",
        "tests/test_tracking.py",
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
        "state.py",
        "from_main(accelerator, lambda: checkpoints.load(config.resume_from_checkpoint))",
        "checkpoints.load(config.resume_from_checkpoint)",
        f"{FAULTS}test_machines.py -k killed",
    ),
    Guard(
        "a share of its own for each process",
        "data/loading.py",
        "range(rank, len(dataset), world)",
        "range(0, len(dataset), world)",
        f"{FAULTS}test_exactness.py -k scores",
    ),
    Guard(
        "void counts in no score",
        "metrics.py",
        "torch.where(mask < UNLABELLED, mask, classes)",
        "mask % classes",
        "tests/test_metrics.py",
    ),
    Guard("order from seed and epoch", "data/loading.py", "[self.seed, epoch, which]", "[self.seed, which]", DATA),
    Guard(
        "augmentation from its key",
        "data/transforms.py",
        "np.random.SeedSequence(list(key))",
        "np.random.SeedSequence([0])",
        DATA,
    ),
    Guard(
        "formats of a closed list",
        "data/datasets.py",
        "Image.open(path, formats=formats)",
        "Image.open(path)",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard(
        "no empty files and pipes",
        "data/datasets.py",
        "if not 0 < size <=",
        "if not size <=",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard(
        "bytes of a file",
        "data/datasets.py",
        "0 < size <= 8 * max_pixels + 1_000_000",
        "0 < size",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard("size before decoding", "data/datasets.py", "decoded_pixels(image) > max_pixels", "False", DATA),
    Guard("tiles of a TIFF", "pictures.py", ", width * height)", ", 0)", f"{DATA} -k bad_files"),
    Guard("absolute names of videos", "media.py", "os.path.abspath(path), cv2", "path, cv2", f"{PREDICT} -k network"),
    Guard("labels of the list", "data/datasets.py", "if (ids < 0).any():", "if False:", DATA),
    Guard(
        "labels below zero",
        "data/datasets.py",
        "raw.clip(-1, LABELS)",
        "raw.clip(0, LABELS)",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard("one image in one split", "data/checks.py", 'if split == "val" and digest in seen:', "if False:", DATA),
    Guard(
        "labels are there",
        "data/checks.py",
        'check_labels(known["labels"], splits.classes, config)',
        "pass",
        "tests/test_checks.py",
    ),
    Guard(
        "files that changed are read again",
        "data/checks.py",
        'known.get("sha256") == found',
        'known.get("sha256")',
        "tests/test_checks.py",
    ),
    Guard("EXIF", "data/datasets.py", "if orientation != 1:", "if False:", DATA),
    Guard(
        "8 bits a channel",
        "data/datasets.py",
        "if image.mode in DEEP_MODES:",
        "if False:",
        f"{FAULTS}test_bad_files.py -k bad_files",
    ),
    Guard(
        "no aliases", "config_parse.py", "if self.check_event(yaml.AliasEvent):", "if False:", "tests/test_config.py"
    ),
    Guard("no key twice", "config_parse.py", "if key.value in seen:", "if False:", "tests/test_config.py"),
    Guard(
        "size of a config",
        "config_parse.py",
        "file.stat().st_size > MAX_CONFIG_BYTES",
        "False",
        f"{FAULTS}test_hostile.py -k yaml",
    ),
    Guard(
        "the lock",
        "launch.py",
        "fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        "tests/test_pipeline.py -k two_runs",
    ),
    Guard(
        "workers let the lock go",
        "launch.py",
        "os.register_at_fork(after_in_child=let_go)",
        "pass",
        f"{FAULTS}test_hostile.py -k orphan",
    ),
    Guard(
        "the launcher's death is noticed",
        "launcher.py",
        "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)",
        "pass",
        f"{FAULTS}test_signals.py -k launcher",
    ),
    Guard(
        "as many processes as asked for",
        "launch.py",
        "if accelerator.num_processes < asked:",
        "if False:",
        "tests/test_pipeline.py -k fewer",
    ),
    Guard(
        "a lost process is named",
        "launch.py",
        'if not isinstance(error, DistError) and "/gloo/" not in text and CLOSED_AFTER_TIMEOUT not in text:',
        "if True:",
        f"{FAULTS}test_signals.py -k limit",
    ),
    Guard(
        "the others are asked",
        "launch.py",
        "lost = [other for other in lost if not store.check([keys[other]])]",
        "pass",
        f"{FAULTS}test_signals.py -k limit",
    ),
    Guard(
        "near chance",
        "teacher.py",
        "if scores.present > 1 and scores.skill < NEAR_CHANCE:",
        "if False:",
        "tests/test_pipeline.py -k chance",
    ),
    Guard(
        "layers beyond the weights", "models.py", "if next(layers) > 0:", "if False:", "tests/test_models.py -k layers"
    ),
    Guard(
        "a teacher's other files",
        "smp_files.py",
        "if name in config:",
        "if False:",
        "tests/test_models.py -k elsewhere",
    ),
    Guard(
        "numbers from each image",
        "smp_files.py",
        'transform.get("normalization", "standard")) != "standard":',
        'transform.get("normalization", "standard")) is None:',
        "tests/test_models.py -k refused_by_name",
    ),
    Guard(
        "no evaluation is overwritten",
        "assess.py",
        'if (wanted / "evaluation.json").exists():',
        "if False:",
        "tests/test_evaluate_script.py -k overwritten",
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
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
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


def test_every_guard_stands_in_the_source_once():
    moved = [guard.name for guard in GUARDS if (ROOT / "distill" / guard.file).read_text().count(guard.text) != 1]
    assert not moved
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)


def test_a_guard_taken_out_is_noticed(tmp_path):
    figure = guards(["size before decoding"], tmp_path)
    assert figure.ok, figure.failures


@pytest.mark.faults
def test_no_guard_is_idle(tmp_path):
    figure = guards([guard.name for guard in GUARDS], tmp_path)
    assert figure.ok, "\n".join(figure.failures)
