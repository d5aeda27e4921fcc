"""What a finished run leaves behind: numbers, pictures, the files with their proofs, the reports, the model card."""

from __future__ import annotations

from PIL import Image

from distill.config.networks import OWN
from distill.deployment.onnx_export import OnnxFile
from distill.evaluation.pictures import WIDEST_PANEL, Pictures
from distill.evaluation.scores import Evaluation
from distill.models.network import Network
from distill.reporting.board import write_board
from distill.reporting.curves import read_curves
from distill.reporting.model_card import push, write_card
from distill.reporting.report import summary, write_report
from distill.reporting.report_page import write_page
from distill.reporting.results import Results
from distill.storage import write_json
from distill.training.context import Run


def finish(run: Run, networks: dict[str, Network], evaluation: Evaluation, results: Results) -> None:
    """Pictures, numbers, the reports and TensorBoard."""
    config, splits, folder = run.config, run.splits, run.config.folder
    student, board = folder / "student", folder / "tensorboard"
    pictures = Pictures(splits.val, run.shown, splits.classes, splits.palette, networks)
    (folder / "samples").mkdir(exist_ok=True)
    paths = []
    for name, picture in pictures.strips().items():
        paths.append(f"samples/{name}.png")
        Image.fromarray(picture).save(folder / paths[-1])

    write_json(folder / "results.json", results.to_json())
    command = f"accelerate launch scripts/distill.py --config {folder}/config.yaml"
    if config.data.format == OWN:
        command = f'distill.distill(…, output_dir="{folder}") with the same arguments'
    report = write_report(folder, config.name, results, paths, command)
    write_card(student, config, results)
    write_board(run, evaluation, results, pictures.blocks(), report)
    extremes = [score.index for score in (*results.details.worst, *results.details.best)] if results.details else []
    shown = Pictures(splits.val, extremes, splits.classes, splits.palette, networks).drawn(widest=WIDEST_PANEL)
    write_page(folder, config, results, read_curves(board), command, shown)

    made = student / ("model.onnx" if isinstance(results.files.onnx, OnnxFile) else "model.safetensors")
    run.say(f"\n{summary(results)}\n\n{folder}/report.html, {made}, tensorboard --logdir {board}")
    for reason in results.files.errors:
        run.say(f"distill: warning: {reason}; all else is done")
    if config.push_to_hub and config.hub_model_id:
        run.say(f"uploaded to {push(student, config.hub_model_id)}")
