import subprocess
import sys
from pathlib import Path

import pytest

from distill.config import HARMLESS, Config, dump, flatten
from distill.config_parse import parse
from distill.data import build_transform
from distill.losses import TERMS
from distill.pipeline import try_build
from distill.sweep import command_line

ROOT = Path(__file__).resolve().parents[1]


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
        ("student: {mean: [1, 2]}", ("student.mean", "three")),
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
    code = "import sys; from distill.config_parse import parse; parse([]); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_harmless_settings_exist():
    assert set(HARMLESS) <= set(flatten(Config()))


def test_every_term_has_a_section_with_its_settings():
    for name, term in TERMS.items():
        section = getattr(Config(), name)
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in (term.__init__.__kwdefaults__ or {}).items()}
        assert vars(section) == {"weight": section.weight} | settings, name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_configs_parse_and_build(path):
    config = parse(["--config", str(path)])
    assert f"--config configs/{path.name}" in path.read_text(), "opens with its command"
    build_transform(config.data)
    if isinstance(config.cross_entropy.class_weights, str):  # these come from the data
        config.cross_entropy.class_weights = [1.0, 1.0]
    try_build(config, ["a", "b"])


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_sweeps_parse_and_build(path):
    text = path.read_text()
    assert f"scripts/sweep.py configs/sweeps/{path.name}" in text, "opens with its command"
    base = ["--config", "configs/camvid_cpu.yaml"] if "camvid_cpu" in text else []
    _, trials, settings = command_line([str(path), *base])
    classes = [str(i) for i in range(11)]
    assert len({trial.key for trial in trials}) == len(trials)
    for trial, config in zip(trials, settings, strict=True):
        try_build(config, classes)
        assert all(flatten(config)[key] == value for key, value in trial.settings.items()), trial.name
