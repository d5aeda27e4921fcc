import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from conftest import ROOT

from distill import models
from distill.config.data import DataConfig
from distill.config.networks import StudentConfig, TeacherConfig
from distill.config.parse import parse
from distill.config.schema import RUNTIME_SETTINGS, Config, ExportConfig, OptimizerConfig, dump, flatten
from distill.data import build_transform
from distill.losses import (
    TERMS,
    ATConfig,
    CIRKDConfig,
    CrossEntropyConfig,
    CWDConfig,
    DiceConfig,
    DISTConfig,
    DKDConfig,
    FocalConfig,
    HintConfig,
    JaccardConfig,
    KDConfig,
    MGDConfig,
    OHEMConfig,
    SKDConfig,
)
from distill.losses.sections import TermsConfig
from distill.pipeline import dry_run
from distill.sweep import command_line, plan


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip()
    assert len(message.splitlines()) == 1
    return message


def yaml(tmp_path: Path, text: str) -> tuple[str, str]:
    (tmp_path / "c.yaml").write_text(text)
    return "--config", str(tmp_path / "c.yaml")


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    config = parse([*yaml(tmp_path, "seed: 3\nteacher: {learning_rate: 5e-4}\nkd: {weight: 2}"), "--kd.weight", "7"])
    assert (config.seed, config.kd.weight, config.kd.temperature) == (3, 7.0, Config().kd.temperature)
    assert config.teacher.learning_rate == 5e-4
    assert config.teacher.arch == Config().teacher.arch


def test_words_stay_words(tmp_path):
    config = parse(yaml(tmp_path, "mixed_precision: no\ndata:\n  classes: [no, on, 'off', y]"))
    assert config.mixed_precision == "no"
    assert config.data.classes == ["no", "on", "off", "y"]


def test_resolved_settings_read_back_the_same(tmp_path):
    config = parse(["--kd.temperature", "1e-1", "--data.classes", "[a, b]"])
    assert parse(yaml(tmp_path, dump(config))) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kd: {temprature: 2}", ("temprature", "kd.temperature")),
        ("sede: 1", ("sede", "seed")),
        ("kd: {temperature: warm}", ("kd.temperature", "warm")),
        ("kd: {temperature: .nan}", ("kd.temperature", "nan")),
        ("kd: {temperature: 0}", ("kd.temperature", "0")),
        ("kd: {weight: -1}", ("kd.weight", "-1")),
        ("seed: 1\nseed: 2", ("seed", "twice")),
        ("a: &x [1]\nseed: *x", ("alias", "line 2")),
        ("seed: !!python/object/apply:os.system ['true']", ("python",)),
        ("student: {learning_rate: 1e38}", ("student.learning_rate", "1e+38", "at most 1e+15")),
        ("cross_entropy: {class_weights: [1.0, 1e39]}", ("cross_entropy.class_weights", "at most 1e+15")),
        ("schedules: {kd.weight: {kind: linear, end: 1e39}}", ("kd.weight", "at most 1e+15")),
        ("student: {channels: []}", ("student.channels", "must hold at least one")),
        ("data: {crop_size: [64]}", ("data.crop_size", "height")),
        ("data: {format: kamvid}", ("data.format", "kamvid")),
        ("name: ../up", ("name", "../up")),
        ("name: ..", ("name", "'..'", "letters")),
        ("name: .", ("name", "'.'", "letters")),
        ("data: {root: a}\ndata.root: b", ("'data'", "'data.root'", "one would win")),
        ("data.root: b\ndata: {root: a}", ("'data'", "'data.root'", "one would win")),
        ("student.arch: unet\nstudent: {options: {}}", ("'student'", "'student.arch'", "one would win")),
        ("student.options.a: 1\nstudent.options: {b: 2}", ("'student.options'", "'student.options.a'")),
        ("student: {options.a: 1, options: {b: 2}}", ("'options'", "'options.a'", "one would win")),
        ("seed: 12345678901234567890123456789012", ("seed", "12345678901234567890123456789012", "smaller")),
        ("data: {crop_size: [64, 12345678901234567890123456789012]}", ("data.crop_size", "smaller")),
        ("cross_entropy: {weight: 0}\nkd: {weight: 0}", ("cross_entropy.weight", "all are 0")),
        ("[1, 2", ("c.yaml",)),
        ("[" * 5000, ("c.yaml",)),
    ],
)
def test_bad_settings_get_one_line(tmp_path, capsys, text, words):
    message = refused(capsys, *yaml(tmp_path, text))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("flag", ["--kd.temprature=2", "--kd.temp=2", "--nonsense", "--seed=x"])
def test_bad_flags_get_one_line(capsys, flag):
    assert flag.lstrip("-").split("=")[0] in refused(capsys, flag)


def test_a_missing_file_is_named(capsys):
    assert "nowhere.yaml" in refused(capsys, "--config", "nowhere.yaml")


def printed_help(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(arguments)
    assert not stop.value.code
    return capsys.readouterr().out


def test_help_all_lists_every_setting_with_its_help_and_default_data_and_networks_first():
    help_text = " ".join(
        subprocess.run(
            [sys.executable, ROOT / "scripts" / "distill.py", "--help", "all"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    for name in flatten(Config()):
        assert f"--{name} " in help_text, name
    assert "both distributions are softmax(logits / T). (type: float, default: 1.0)" in help_text
    places = [help_text.index(f" --{name} ") for name in ("data.root", "teacher.arch", "student.arch", "kd.weight")]
    assert places == sorted(places)


def test_help_is_an_overview_that_names_every_section(capsys):
    text = printed_help(capsys, "--config", "configs/camvid_cpu.yaml", "--help")
    assert len(text.splitlines()) < 100
    for name in [*(name.partition(".")[0] for name in flatten(Config()) if "." in name), "run"]:
        assert f"\n  {name} " in text, name
    assert text.index("--data.root") < text.index("--student.arch") < text.index("\n  cross_entropy ")
    assert "--dice.smooth" not in text


@pytest.mark.parametrize("section", ["data", "student", "kd", "run"])
def test_help_of_a_section_lists_that_section_alone(capsys, section):
    text = printed_help(capsys, "--help", section)
    for name in flatten(Config()):
        within = name.startswith(f"{section}.") if section != "run" else "." not in name
        assert (f"--{name} " in text) == within, name
    assert printed_help(capsys, f"--help={section}") == text


def test_help_of_no_section_gets_one_line(capsys):
    assert "--help dat: no such section; did you mean 'data'?" in refused(capsys, "--help", "dat")


def test_options_of_another_architecture_are_named_with_their_file(tmp_path, capsys):
    file = yaml(tmp_path, "student: {arch: fpn, options: {decoder_pyramid_channels: 64}}")
    message = refused(capsys, *file, "--student.arch", "unet")
    assert f"student.options: decoder_pyramid_channels of {tmp_path / 'c.yaml'} are for fpn" in message
    assert "with --student.arch unet, give --student.options too" in message
    assert parse([*file, "--student.arch", "unet", "--student.options", "{}"]).student.options == {}
    assert parse([*file, "--student.arch", "FPN"]).student.options == {"decoder_pyramid_channels": 64}
    assert "of the defaults are for fpn" in refused(capsys, "--student.arch", "unet")


def test_settings_are_read_without_torch():
    code = "import sys; from distill.config.parse import parse; parse([]); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_harmless_settings_exist():
    assert set(RUNTIME_SETTINGS) <= set(flatten(Config()))


def test_every_loss_has_a_section_of_its_settings():
    sections = {f.name: f.default_factory for f in fields(TermsConfig) if f.name != "schedules"}
    assert sections == {name: loss.Config for name, loss in TERMS.items()}


STEPS = "eval_steps checkpointing_steps checkpoints_total_limit logging_steps timeout_seconds"
BATCHES = "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_processes num_threads"
SAMPLES = "max_train_samples max_eval_samples max_pixels synthetic_train synthetic_val"
SIZES = "image_size crop_size synthetic_size"
OUT_OF_RANGE = [  # settings, fields, a value that they refuse, the fix
    *((loss.Config, "weight", -1, "must not be negative") for loss in TERMS.values()),
    (CrossEntropyConfig, "label_smoothing", 2, "must be between 0 and 1"),
    (KDConfig, "beta", 2.0, "must be between 0 and 1"),
    (CrossEntropyConfig, "class_weights", [1, -1], "must not be negative"),
    (CrossEntropyConfig, "class_weights", [1, math.nan], "is not finite"),
    (CrossEntropyConfig, "class_weights", "sqrt", "must be one of log, median"),
    (OHEMConfig, "threshold min_kept", 1.5, "must be between 0 and 1"),
    (DiceConfig, "smooth", -1, "must not be negative"),
    (JaccardConfig, "smooth", -1, "must not be negative"),
    (FocalConfig, "gamma", -1, "must not be negative"),
    (FocalConfig, "class_weights", [1, -1], "must not be negative"),
    (KDConfig, "temperature", 0, "must be above 0"),
    (KDConfig, "beta", 1, "must be between 0 and 1; use forward_kl or reverse_kl for the ends"),
    (KDConfig, "confidence_threshold", 2, "must be between 0 and 1"),
    (KDConfig, "divergence", "kl", "must be one of forward_kl, reverse_kl, "),
    (DKDConfig, "temperature", 0, "must be above 0"),
    (CWDConfig, "temperature", 0, "must be above 0"),
    (DISTConfig, "temperature", 0, "must be above 0"),
    (SKDConfig, "side", 0, "must be above 0"),
    (CIRKDConfig, "temperature side pixel_slots region_slots pixels_per_image", 0, "must be above 0"),
    (CIRKDConfig, "pixel_memory region_memory", -1, "must not be negative"),
    (CIRKDConfig, "layers", ["decoder", "encoder.3"], "must name one layer"),
    (HintConfig, "layers", [], "must be a list of at least one name"),
    (HintConfig, "layers", "decoder", "must be a list of at least one name"),
    (ATConfig, "power", 0.5, "must be at least 1"),
    (MGDConfig, "mask_ratio", 1.5, "must be between 0 and 1"),
    (DataConfig, SIZES, [0, 64], "must be above 0"),
    (DataConfig, SIZES, [64], "must be [height, width]"),
    (DataConfig, SAMPLES, 0, "must be above 0"),
    (DataConfig, "ignore_index num_workers", -1, "must not be negative"),
    (DataConfig, "max_void_share", 1.5, "must be between 0 and 1"),
    (DataConfig, "unlabeled_share", 1, "must be above 0 and below 1"),
    (DataConfig, "format", "kamvid", "must be one of synthetic, camvid, folders"),
    (TeacherConfig, "max_train_steps learning_rate", 0, "must be above 0"),
    (StudentConfig, "max_train_steps learning_rate", 0, "must be above 0"),
    (StudentConfig, "std", [1, 0, 1], "must be above 0"),
    (StudentConfig, "channels", [0, -1], "must not be negative"),
    (OptimizerConfig, "weight_decay warmup_steps power max_grad_norm ema_decay", -1, "must not be negative"),
    (OptimizerConfig, "ema_decay", 1, "must be below 1"),
    (ExportConfig, "int8_calibration_images", 0, "must be above 0"),
    (ExportConfig, "int8_max_lost int8_finetune_steps", -1, "must not be negative"),
    (ExportConfig, "int8_max_lost", 1, "must be below 1"),
    (Config, f"{STEPS} {BATCHES}", 0, "must be above 0"),
    (Config, "seed num_sample_images", -1, "must not be negative"),
    (Config, "mixed_precision", "fp8", "must be one of no, bf16, fp16"),
    (Config, "name", "..", "becomes a folder"),
]


@pytest.mark.parametrize(("kind", "names", "value", "fix"), OUT_OF_RANGE)
def test_settings_check_themselves(kind, names, value, fix):
    for name in names.split():
        with pytest.raises(ValueError, match=re.escape(f"{name}: {value!r} {fix}")):
            kind(**{name: value})
        with pytest.raises(ValueError, match=re.escape(f"{name}: {value!r} {fix}")):
            replace(kind(), **{name: value})


def test_a_repository_is_needed_to_push_to():
    with pytest.raises(ValueError, match=r"^hub_model_id: push_to_hub needs .* such as user/name"):
        Config(push_to_hub=True)


@pytest.mark.parametrize("flag", ["--kd.beta=1.0", "--data.max_pixels=0", "--teacher.max_train_steps=-1", "--seed=-1"])
def test_what_settings_refuse_is_named_with_its_section(capsys, flag):
    name, _, value = flag[2:].partition("=")
    assert refused(capsys, flag).startswith(f"distill: error: {name}: {value} must ")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--data.classes=road,car", "data.classes: 'road,car' is not a list such as [a, b] or null"),
        ("--data.classes=[1, 2]", "data.classes: '[1, 2]' is not a list such as [a, b] or null"),
        ("--data.crop_size=64", "data.crop_size: '64' is not a list such as [a, b]"),
        ("--teacher.window=512", "teacher.window: '512' is not a list such as [1, 2] or null"),
        (
            "--data.mask_colors=[1]",
            "data.mask_colors: '[1]' is not a list of lists such as [[1, 2], [3, 4]] or one of 'pa",
        ),
        ("--data.labels=3", "data.labels: '3' is not a mapping such as {a: b} or null"),
        ("--data.format=folder", "data.format: 'folder' is not one of 'synthetic', 'camvid', 'folders', "),
        ("--mixed_precision=fp8", "mixed_precision: 'fp8' is not one of 'no', 'bf16', 'fp16' or null"),
        ("--seed=a", "seed: 'a' is not a whole number"),
        ("--seed=", "seed: 'nothing' is not a whole number"),
        ("--student.learning_rate=fast", "student.learning_rate: 'fast' is not a number"),
        ("--teacher.cache.enabled=ja", "teacher.cache.enabled: 'ja' is not true or false or null"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_what_it_should_be(capsys, flag, said):
    assert refused(capsys, flag).startswith(f"distill: error: {said}")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_configs_parse_and_build(path):
    config = parse(["--config", str(path)])
    assert f"--config configs/{path.name}" in path.read_text(), "opens with its command"
    build_transform(config.data)
    if isinstance(config.cross_entropy.class_weights, str):  # these come from the data
        config.cross_entropy = replace(config.cross_entropy, class_weights=[1.0, 1.0])
    dry_run(config, ["a", "b"])


@pytest.fixture
def built_once(monkeypatch):
    """Networks of the same settings are one network."""
    build, built = models.build, {}

    def build_once(wanted, classes, *own):
        if (key := f"{wanted} {classes} {own}") not in built:
            built[key] = build(wanted, classes, *own)
        return built[key]

    monkeypatch.setattr(models, "build", build_once)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_sweeps_parse_and_build(path, built_once):
    text = path.read_text()
    base = [word for pair in re.findall(r"(--config) (configs/\w+\.yaml)", text)[:1] for word in pair]
    if compared := f"scripts/compare.py configs/sweeps/{path.name}" in text:
        planned = plan.command_line([str(path), *base])
        trials, settings = planned.trials, planned.configs
    else:
        _, trials, settings = command_line([str(path), *base])
    assert compared or f"scripts/sweep.py configs/sweeps/{path.name}" in text, "opens with its command"
    classes = sorted(set((settings[0].data.labels or {}).values())) or [str(i) for i in range(11)]
    assert len({trial.key for trial in trials}) == len(trials)
    for trial, config in zip(trials, settings, strict=True):
        if trial in trials[:6]:  # the rest are like them
            dry_run(config, classes)
        assert all(flatten(config)[key] == value for key, value in trial.settings.items()), trial.name
