"""benchmarks/novelview.py: at tiny size through its command line, stopped and gone on with, and its sums by hand."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from turboprop.small_models.recipes.mini_novelview import MiniNovelView
from turboprop.world.dataset import build_view_bank, save_view_bank

from benchmarks import novelview as benchmark

import novelview_page  # isort: skip  (the benchmark has put its folder on the path)
import novelview_variants  # isort: skip
import reporting  # isort: skip

SMALL = ["--batch", "2", "--pool", "4", "--measured-objects", "2", "--measured-views", "1", "--sampling-steps", "2"]
SMALL += ["--minutes", "0.002", "--steps", "3", "--warmup", "1"]


@pytest.fixture(scope="module")
def views(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("views") / "views.npz"
    save_view_bank(build_view_bank(4, 0, turns=4), path)
    return path


@pytest.fixture(autouse=True)
def same_threads():
    """The benchmark sets torch's threads; other tests keep theirs."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def finished(outputs: Path) -> dict[str, dict]:
    found = sorted(outputs.rglob("run.json"))
    return {str(path.parent.parent.relative_to(outputs)): json.loads(path.read_text()) for path in found}


def test_runs_are_written_and_not_run_again(views, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reporting, "ROOT", tmp_path)
    given = [*SMALL, "--views", str(views), "--outputs", str(tmp_path / "outputs"), "--seeds", "3"]
    given += ["--variants", "zero123", "ours", "ours-tenth", "ours-clip", "noise-shift", "moving-mean"]
    assert benchmark.main([*given, "--write"]) == 0
    records = finished(tmp_path / "outputs")
    assert sorted(records) == sorted(
        [f"claim/{name}/seed-3" for name in ("zero123", "ours", "ours-tenth", "ours-clip")]
        + [f"samplers/{name}/seed-3" for name in ("noise-shift", "moving-mean")]
    )
    assert records["samplers/moving-mean/seed-3"]["steps"] == 3
    whole, baseline = records["claim/ours/seed-3"], records["claim/zero123/seed-3"]
    assert whole["parameters"] > baseline["parameters"]  # the layers of its features
    assert baseline["precision"] == "float32" and baseline["fingerprint"]["training"]["cooldown"] == 0
    assert records["claim/ours-clip/seed-3"]["parameters"] == baseline["parameters"]
    assert not list((tmp_path / "outputs").rglob("*.pt"))
    text = (tmp_path / "docs/benchmarks/novelview.md").read_text()
    assert "--seeds 3" in text and "--views BANK" in text and str(tmp_path) not in text
    last = whole["history"][-1]
    assert f"| ours, whole | 3 | {whole['precision']} |" in text and f"| {last['psnr_held_out']:.2f} |" in text
    assert (tmp_path / "docs/images/novelview_quality.png").stat().st_size > 10_000
    kept = json.loads((tmp_path / "docs/benchmarks/novelview.json").read_text())["runs"]
    assert [run["history"] for run in kept if run["variant"] == "ours"] == [whole["history"]]

    def again(self, *arguments):
        raise AssertionError("a finished run was run again")

    monkeypatch.setattr(MiniNovelView, "loss", again)
    assert benchmark.main(given) == 0
    capsys.readouterr()
    assert benchmark.main([*given, "--batch", "3", "--table-only"]) == 0
    assert "No run is finished." in capsys.readouterr().out


def test_a_run_that_is_stopped_goes_on_and_ends_as_if_it_had_not_been(views, tmp_path, monkeypatch):
    given = [*SMALL, "--views", str(views), "--seeds", "0", "--variants", "half"]
    assert benchmark.main([*given, "--outputs", str(tmp_path / "whole")]) == 0
    trained, loss = [], MiniNovelView.loss

    def stopped_once(self, step, generator):
        if not trained:
            os.kill(os.getpid(), signal.SIGTERM)
        trained.append(step)
        return loss(self, step, generator)

    monkeypatch.setattr(MiniNovelView, "loss", stopped_once)
    parts = [*given, "--outputs", str(tmp_path / "parts")]
    assert benchmark.main(parts) == 130 and finished(tmp_path / "parts") == {}
    assert benchmark.main(parts) == 0 and trained == [0, 1, 2]
    (whole,), (resumed,) = finished(tmp_path / "whole").values(), finished(tmp_path / "parts").values()
    timeless = [[{k: v for k, v in e.items() if k != "minutes"} for e in r["history"]] for r in (whole, resumed)]
    assert timeless[0] == timeless[1]


def record(name: str, psnr: list[float], seed: int = 0, minutes: tuple[float, ...] = (1, 2, 4, 10)) -> dict:
    history = [
        {"minutes": at, "psnr_held_out": value, "iou_held_out": value / 20, "loss": 1 / value, "loss_00": 1 / value}
        for at, value in zip(minutes, psnr, strict=True)
    ]
    fields = {"table": "claim", "variant": name, "seed": seed, "history": history, "precision": "float32"}
    return {**fields, "minutes": history[-1]["minutes"], "steps": 7}


def test_time_to_a_quality_is_read_off_the_curve():
    history = record("ours", [8.0, 10.0, 9.0, 16.0])["history"]
    assert novelview_page.time_to(history, "psnr_held_out", 9.0) == novelview_page.Reached(1.5, False)
    assert novelview_page.time_to(history, "psnr_held_out", 12.5) == novelview_page.Reached(7.0, False)
    assert novelview_page.time_to(history, "psnr_held_out", 7.0) == novelview_page.Reached(1, True)
    assert novelview_page.time_to(history, "psnr_held_out", 17.0) is None
    assert novelview_page.time_to(history, "loss", 1 / 10).minutes == pytest.approx(2.0)  # less is better


def test_factors_and_words_follow_from_the_records():
    records = [
        record("zero123", [6, 8, 10, 12]), record("zero123", [6, 8, 10, 12], seed=1),
        record("ours", [10, 14, 15, 16]), record("ours", [8, 12, 15, 16], seed=1),
        record("ours-clip", [5, 7, 12, 13]), record("ours-clip", [5, 7, 12, 13], seed=1),
        record("ours-uniform", [5, 7, 8, 13]), record("ours-uniform", [5, 7, 8, 9], seed=1),
        record("ours-tenth", [12.5], minutes=(1,)), record("ours-tenth", [11.5], seed=1, minutes=(1,)),
    ]  # fmt: skip
    variants = novelview_page.by_variant(records, "claim", list(novelview_variants.CLAIM))
    whole = novelview_page.times_faster(variants, "ours", "psnr_held_out")
    assert whole.factors == pytest.approx([10 / 1.5, 10 / 2]) and whole.shown() == "5.8 (5.0 to 6.7)"
    text = "\n".join(novelview_page.tables(records))
    assert "PSNR 12.00 against 12.00, as good in 1 of 2 seeds" in text
    assert "without DINO's patches and features 2.5 (2.5 to 2.5), so it gives 2.33 times" in text
    assert ", not reached in 1 of 2;" in text or ", not reached in 1 of 2." in text


def test_the_mean_moves_and_every_left_out_idea_is_one_change():
    rule = novelview_variants.SAMPLERS["moving-mean"].rule(100)
    assert [rule(step).timesteps.mean for step in (0, 40, 50, 60, 99)] == [1000, 1000, 750, 500, 500]
    whole = novelview_variants.CLAIM["ours"]
    for name in novelview_variants.LEFT_OUT:
        other = novelview_variants.CLAIM[name]
        assert sum(getattr(other, key) != getattr(whole, key) for key in ("timesteps", "dino", "quick")) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--views", "no/such.npz"], "error: --views: there is no file"), (["--views", __file__], "error: ")],
)
def test_bad_input_is_one_line(given, message, tmp_path, capsys):
    assert benchmark.main([*given, "--table-only", "--outputs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1


@pytest.mark.slow
def test_the_dry_run_has_every_variant(views, capsys):
    assert benchmark.main(["--dry-run", "--views", str(views)]) == 0
    shown = capsys.readouterr().out
    for table in novelview_variants.TABLES.values():
        assert all(f"| {variant.title} | 0 |" in shown for variant in table.values())
