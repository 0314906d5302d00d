"""benchmarks/distillation.py: stopped, gone on with, stale and written, at tiny size through the real command line."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import distillation as benchmark
from tests.main_job import SMALL

import distillation_page  # isort: skip  (the benchmark has put its folder on the path)
import distillation_runs  # isort: skip
import reporting  # isort: skip

ROOT = Path(__file__).resolve().parents[1]
# A judge of few views; the rest as the tiny main job has it.
TINY = [key for key in SMALL if "judge" not in key and "use_timestamp" not in key and "batch_size" not in key]
TINY += ["system.judge_views=2", "trainer.max_steps=2", "trainer.val_check_interval=null"]
ONE = ["--systems", "3dconv", "--captions", "kind", "--methods", "csd", "--seeds", "0", "--prompts", "2"]


def arguments(folder: Path, outputs: Path) -> list[str]:
    given = ["--scales", "2", "5", "--teachers", f"mini-sd={folder}", "--threads", "1", "--outputs", str(outputs)]
    return [*ONE, *given, "--set", *(f"3dconv:{key}" for key in TINY)]


def started(outputs: Path) -> list[Path]:
    return sorted(outputs.rglob("log.txt"))


def finished(outputs: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(outputs.rglob("run.json"))}


@pytest.mark.slow
def test_stopped_and_gone_on_with_then_stale(tmp_path, tiny_sd_folder, text_cache, monkeypatch, capsys):
    folder, outputs = tmp_path / "teacher", tmp_path / "outputs"
    shutil.copytree(tiny_sd_folder, folder)
    given = arguments(folder, outputs)
    command = [sys.executable, "benchmarks/distillation.py", *given]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not started(outputs):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert finished(outputs) == {}

    monkeypatch.setattr(reporting, "ROOT", tmp_path)
    monkeypatch.chdir(ROOT)
    assert benchmark.main([*given, "--write"]) == 0
    done = finished(outputs)
    assert len(done) == 3  # two scales, and the table's run at the better one
    scores = {}
    for path in done:
        record = json.loads(path.read_text())
        searched = record["run"]["search"]
        assert [entry["prompt"] for entry in record["prompts"]] == (
            ["an umbrella", "a duck"] if searched else ["a mushroom", "a table"]
        )
        assert all(entry["measured_as"].split()[2] == entry["prompt"].split()[1] for entry in record["prompts"])
        if searched:
            scores[record["run"]["scale"]] = benchmark.search_score([record])
        else:
            table = record
    assert set(scores) == {2.0, 5.0} and scores[table["run"]["scale"]] == max(scores.values())
    text = (tmp_path / "docs/benchmarks/distillation.md").read_text()
    assert f"| CSD | {table['run']['scale']:g} | 0 | {table['mean']['iou']:.3f} |" in text
    (run,) = json.loads((tmp_path / "docs/benchmarks/distillation.json").read_text())["runs"]
    assert run["hash"] == table["hash"] and run["mean"] == table["mean"]

    assert benchmark.main(given) == 0
    assert finished(outputs) == done  # nothing was run again
    capsys.readouterr()
    assert benchmark.main([*given, "3dconv:system.loss.lambda_sparsity=3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("stale: system.loss.lambda_sparsity changed") == 2 and "after its search" in shown
    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert benchmark.main([*given, "--table-only"]) == 0
    assert "No run of a table is finished" in capsys.readouterr().out
    assert benchmark.main([*given, "--table-only", "--write"]) == 2
    assert finished(outputs) == done


def test_every_run_of_the_whole_benchmark_has_a_config(tmp_path, capsys):
    given = ["--outputs", str(tmp_path), "--seeds", "0", "--scales", "5", "--captions", "color", "--dry-run"]
    assert benchmark.main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    tables = len(distillation_runs.METHODS) * len(distillation_runs.TEACHERS)
    assert len(lines) == tables * (1 + len(distillation_runs.NERF_KINDS))
    assert all(line.startswith("missing: ") for line in lines) and len(set(lines)) == len(lines)
    assert list(tmp_path.iterdir()) == []


def test_the_page_names_the_command_without_places():
    given = ["--systems", "nerf", "--outputs", "/tmp/x", "--table-only", "--scales", "2", "5", "--write"]
    expected = "python benchmarks/distillation.py --systems nerf --scales 2 5 --write"
    assert benchmark.command_without_places(given) == expected


def test_what_is_searched_on_is_in_no_table():
    for form in distillation_runs.CAPTIONS.values():
        sought = {form(spec) for spec in distillation_runs.specs_of("3dconv", True, None)}
        for system in distillation_runs.SYSTEMS:
            texts = [form(spec) for spec in distillation_runs.specs_of(system, False, None)]
            assert len(set(texts)) == len(texts) and not sought & set(texts)


@pytest.mark.parametrize(
    "given, message",
    [
        (["--teachers", "mini"], "--teachers: expected mini-sd, mini-mv"),
        (["--teachers", "mini-sd=no/such"], "--teachers: mini-sd has no folder no/such"),
        (["--set", "nurf:seed=1"], "--set: expected a system of 3dconv, nerf"),
        (["--set", "system.guidance.plus_ration=1", "--dry-run"], "plus_ratio"),
    ],
)
def test_bad_input_is_one_line(given, message, tmp_path, capsys):
    assert benchmark.main([*given, "--outputs", str(tmp_path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


def cell(method: str, ious: list[float], **figures: list[float]) -> distillation_page.Cell:
    values = {"iou": ious, **figures}
    records = {}
    for seed, iou in enumerate(ious):
        means = {name: value[seed] for name, value in values.items()}
        records[seed] = [{"mean": means, "prompts": [{"iou": iou}], "empty_meshes": 0, "seconds": 60.0}]
    return distillation_page.Cell("3dconv", "mini-sd", "full", method, 5.0, records)


def test_the_words_say_what_is_within_the_spread():
    cells = [
        cell("asd-0", [0.70, 0.74, 0.72], color_error=[0.10, 0.10, 0.10]),
        cell("asd-random-0.1", [0.73, 0.75, 0.77], color_error=[0.12, 0.13, 0.14]),
        cell("sds", [0.80, 0.82, 0.84], color_error=[0.11, 0.09, 0.10]),
        cell("csd", [0.81, 0.79, 0.80], color_error=[0.20, 0.21, 0.22]),
    ]
    text = "\n".join(distillation_page.words(cells))
    assert (
        "IoU: best is SDS, 0.820; within its seeds' spread: CSD; behind: ASD, no shift, ASD, shift up to 0.1." in text
    )
    assert "colour error: best is ASD, no shift, 0.100; within its seeds' spread: SDS; behind:" in text
    assert "ASD, shift up to 0.1 against no shift: IoU +0.030 (within the spread), colour error +0.030 (worse)." in text
    row = distillation_page.methods_table(cells)[3]
    assert row.startswith("| ASD, shift up to 0.1 | 5 | 0, 1, 2 | 0.750 (0.730 to 0.770) |")
    assert row.endswith("| .237 / .276 |")


def test_the_page_keeps_the_tables_that_a_command_has_no_run_of():
    def record(captions: str, method: str, seed: int) -> dict:
        run = {
            "system": "nerf",
            "teacher": "mini-mv",
            "captions": captions,
            "method": method,
            "scale": 2.0,
            "seed": seed,
        }
        return {"run": run, "mean": {"iou": 0.5}}

    before = [record("full", "sds", 0), record("full", "sds", 0), record("full", "sds", 1), record("kind", "csd", 0)]
    cells = [distillation_page.Cell("nerf", "mini-mv", "kind", "sds", 2.0, {0: []})]
    (kept,) = distillation_page.recorded_cells(before, cells)
    assert (kept.captions, kept.method, kept.scale) == ("full", "sds", 2.0)
    assert {seed: len(runs) for seed, runs in kept.records.items()} == {0: 2, 1: 1}


def test_a_command_whose_tables_are_all_replaced_is_gone():
    cells = [distillation_page.Cell("nerf", "mini-mv", "full", "sds", 2.0, {0: []})]
    command = "python benchmarks/distillation.py --teachers mini-mv --systems nerf --captions {} --seeds 0 --write"
    assert not benchmark.has_tables_beside(command.format("full"), cells)
    assert benchmark.has_tables_beside(command.format("full kind"), cells)
    other = [distillation_page.Cell("nerf", "mini-sd", "full", "sds", 2.0, {0: []})]
    assert benchmark.has_tables_beside(command.format("full"), other)


def test_one_seed_says_nothing_of_the_spread():
    (line,) = distillation_page.words([cell("sds", [0.8]), cell("csd", [0.7])])
    assert "One seed" in line and line.endswith("SDS, CSD.")


def test_methods_of_several_seeds_are_compared_beside_one_of_a_single_seed():
    lines = distillation_page.words([cell("sds", [0.8, 0.82]), cell("csd", [0.7, 0.71]), cell("vsd", [0.9])])
    assert lines[0].endswith("not to be read: VSD.")
    assert any("IoU: best is SDS, 0.810" in line and "behind: CSD." in line for line in lines)
    assert not any("VSD" in line for line in lines[1:])


def test_a_search_of_another_system_that_the_page_has_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "ROOT", tmp_path)
    assert benchmark.recorded_scale("nerf", "mini-mv", "full", "csd") is None
    run = {"system": "nerf", "teacher": "mini-mv", "captions": "full", "method": "csd", "scale": 5.0, "seed": 0}
    file = tmp_path / "docs/benchmarks/distillation.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"runs": [{"run": run}]}))
    given = ["--scales", "2", "5", "--search-on", "nerf", "--outputs", str(tmp_path / "outputs")]
    args = benchmark.parse(given)
    bench = benchmark.Bench(args, benchmark.settings_of(args))
    assert bench.best_scale("3dconv", "mini-mv", "full", "csd") == 5.0
    monkeypatch.setattr(bench, "done", lambda run: None)  # a search that finds nothing finished
    assert bench.best_scale("3dconv", "mini-mv", "full", "sds") is None
