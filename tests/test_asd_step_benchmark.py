"""The benchmark of the main job's step measures a step of today's code."""

from benchmarks.asd_step import PARTS, ROOT, in_a_process, ratios, table


def test_a_step_is_measured_by_part():
    small = ["data.batch_size=1", "data.n_view=1", "data.width=8", "data.height=8", "system.renderer.eikonal_points=64"]
    found = in_a_process(ROOT, "configs/asd-3dconv.yaml", small, 1)
    assert list(found["seconds"]) == list(PARTS) and min(found["seconds"].values()) > 0
    assert found["step"] == sum(found["seconds"].values()) and found["peak_gb"] > 0.1


def test_ratios_and_tables_are_of_steps():
    def result(step: float, peak: float) -> dict:
        return {"seconds": dict.fromkeys(PARTS, step / 6), "step": step, "eikonal": 0.5, "peak_gb": peak}

    found = {"this code": [result(1.0, 2.0), result(2.0, 3.0)], "the other": [result(2.0, 4.0), result(8.0, 4.0)]}
    lines = ratios(found)
    assert "takes 0.50 of the time of 4 steps" in lines[0] and "takes 1.00 of the time of 4 steps" in lines[1]
    assert lines[2:] == [
        "1 prompt: 0.50 of the other's time, 0.50 of its memory.",
        "4 prompts: 0.25 of the other's time, 0.75 of its memory.",
    ]
    assert "| **step** | 1.000 | 2.000 | 2.000 | 8.000 |" in table(found)
