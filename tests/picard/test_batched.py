"""The batched executor: what slots ask for together they get as they would alone, and all else is their own."""

import csv
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf
from torch.nn.modules.module import register_module_forward_hook
from turboprop.distillation.guidance import DistillationGuidance
from turboprop.picard.batched.context import TorchModes
from turboprop.picard.batched.joined_teacher import TeacherCall, answer_calls
from turboprop.picard.batched.scheduler import CooperativeScheduler
from turboprop.picard.settings import picard_config
from turboprop.teachers.contract import TextCondition
from turboprop.teachers.gaussian_mixture import GaussianMixtureTeacher
from turboprop.teachers.latent_diffusion import LatentDiffusionTeacher
from turboprop.teachers.multi_view.teacher import MultiViewCondition

import threestudio
from launch import main
from tests import main_job
from tests.picard.processes import fit_in_processes
from tests.picard.runs import COMMON, GEOMETRY, KINDS, ROOT, checkpoint, fit, state_of
from tests.saved_states import assert_same

SMALL = ["data.batch_size=2", "data.width=8", "data.height=8", "data.eval_width=8", "data.eval_height=8",
         "data.n_test_views=1", "data.n_val_views=1"]  # fmt: skip
BAD_STEP = 2
EXECUTORS = ("in_process", "experimental_batched")


@threestudio.register("test-mixture-teacher")
class MixtureTeacher(GaussianMixtureTeacher):
    """Exact for each sample, so that a batch of several slots' samples is too. Any text asks for the whole mixture."""

    def __init__(self, cfg) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(torch.randn(3, 3, 8, 8, generator=generator) * 0.3, [0.3, 0.1, 0.2])

    def predict_noise(self, noisy, timesteps, condition):
        weights = condition.embeddings[:, :1, :3].float().softmax(-1)
        return super().predict_noise(noisy, timesteps, TextCondition(weights))


@threestudio.register("test-bad-render-guidance")
class BadRenderGuidance(DistillationGuidance):
    """At one step the teacher sees NaN, or the step ends in an error."""

    def update_step(self, epoch, global_step, on_load_weights=False):
        super().update_step(epoch, global_step, on_load_weights)
        self.now = global_step

    def __call__(self, rgb, *args, **kwargs):
        if self.now == BAD_STEP and self.cfg.grad_clip == 7:
            raise ValueError(f"no picture at step {self.now}")
        return super().__call__(rgb * float("nan") if self.now == BAD_STEP else rgb, *args, **kwargs)


@pytest.fixture()
def distill(tmp_path, monkeypatch, tiny_sd_folder, text_cache):
    """Runs a config of distillation, small: its last checkpoint, and what it has logged."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *extra: str, kind: str = "nerf", picard: tuple[str, ...] = (), steps: int = 4, method="asd",
            optimizer=None):  # fmt: skip
        config = OmegaConf.load(ROOT / f"configs/asd-{kind}.yaml")
        del config.system["evaluation"]
        config.system.loss[f"lambda_{method}"] = config.system.loss.pop("lambda_distillation")
        for part in (config.system.guidance, config.system.prompt_processor):
            part.pretrained_model_name_or_path = str(tiny_sd_folder)
        if kind != "gaussians":  # updates that are linear in the gradients keep small differences small
            config.system.optimizer = optimizer or {"name": "SGD", "args": {"lr": 0.01, "momentum": 0.9}}
        OmegaConf.save(config, tmp_path / f"{name}.yaml")
        system = config.system_type.split(":")[0] + (":picard" if picard else "")
        given = [f"exp_root_dir={tmp_path / name}", f"system_type={system}", f"trainer.max_steps={steps}"]
        mixin = [f"system.picard.{key}" for key in picard]
        anneal = ["system.guidance.min_step_percent=[0,0.5,0.1,4]", "system.guidance.max_step_percent=[0,0.9,0.3,4]"]
        geometry = [value for value in GEOMETRY[kind] if "scheduler" not in value]
        command = [*COMMON, *geometry, *SMALL, *anneal, *given, *mixin, *extra]
        assert main(["--config", str(tmp_path / f"{name}.yaml"), "--train", *command]) == 0
        return checkpoint(tmp_path / name), logs(tmp_path / name)

    return run


def logs(folder) -> list[dict]:
    (file,) = folder.glob("fit/run/csv_logs/version_0/metrics.csv")
    with file.open() as table:
        return [
            {k: v for k, v in row.items() if v and "picard" not in k and k != "train/steps_per_second"}
            for row in csv.DictReader(table)
        ]


@pytest.fixture()
def asked():
    """The batch sizes that UNets are called with."""
    sizes: list[int] = []

    def note(module, args, output):
        if isinstance(module, UNet2DConditionModel):
            sizes.append(args[0].shape[0])

    handle = register_module_forward_hook(note)
    yield sizes
    handle.remove()


def largest_difference(one: dict, other: dict, start: dict) -> float:
    """Between the weights of two runs, as a share of how far training has moved them."""
    apart = moved = 0.0
    for name, value in one["state_dict"].items():
        if value.is_floating_point() and value.numel() and name in start["state_dict"]:
            apart = max(apart, float((value - other["state_dict"][name]).abs().max()))
            moved = max(moved, float((value - start["state_dict"][name]).abs().max()))
    assert moved > 0
    return apart / moved


MIXTURE = "system.guidance.teacher_type=test-mixture-teacher"


@pytest.mark.parametrize("kind", KINDS)
def test_fits_are_the_same_bit_for_bit(kind, tmp_path):
    """Nothing is asked in common here but the backward pass: grids, statistics of density control, draws."""
    keys, steps = ("window=4", "threshold=1e30"), 18 if kind == "nerf" else 9  # NeRF's grid is updated at step 16
    runs = [fit(kind, tmp_path / e, picard=(*keys, f"executor={e}"), steps=steps) for e in EXECUTORS]
    assert_same(state_of(runs[1]), state_of(runs[0]))
    assert runs[1]["picard"] == runs[0]["picard"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_exact_for_each_sample_gives_the_same_bit_for_bit(kind, distill):
    """Timesteps from a range that each step narrows, shifts and noise are then each slot's own: so are what it logs."""
    keys = ("window=4", "threshold=1e30")
    runs = [distill(e, MIXTURE, kind=kind, picard=(*keys, f"executor={e}"), steps=6) for e in EXECUTORS]
    assert_same(state_of(runs[1][0]), state_of(runs[0][0]))
    assert runs[1][1] == runs[0][1]
    ranges = [float(row["train/min_step"]) for row in runs[1][1] if "train/min_step" in row]
    assert len(ranges) == 6 and ranges[:5] == sorted(set(ranges), reverse=True)
    assert any(float(row.get("train/difference_norm", 0)) > 0 for row in runs[1][1])


@pytest.mark.parametrize("method", ["sds", "sjc", "sdi"])
def test_every_method_is_served(method, distill):
    """SDI's slots ask as often as their timesteps take."""
    names = {"sjc": "turboprop-guidance", "sdi": "stable-diffusion-sdi-guidance"}
    given = [MIXTURE, f"system.guidance_type={names.get(method, f'turboprop-{method}-guidance')}"]
    given += ["system.guidance.method=sjc"] if method == "sjc" else []
    keys = ("window=3", "threshold=1e30", "executor=")
    ends = [
        distill(executor, *given, picard=(*keys[:2], keys[2] + executor), steps=3, method=method)[0]
        for executor in EXECUTORS
    ]
    assert_same(state_of(ends[1]), state_of(ends[0]))


def test_a_network_is_asked_once_a_round(distill, asked):
    """Its arithmetic depends on the size of the batch in the last bits, so gradients differ by rounding: updates that
    are linear in them end within 1e-4 of the way that the weights have gone."""
    start = distill("start", steps=1, picard=("window=1",))[0]
    keys = ("window=4", "threshold=1e30")
    runs = {}
    for executor in EXECUTORS:
        asked.clear()
        runs[executor] = distill(executor, picard=(*keys, f"executor={executor}"), steps=6)[0]
        runs[executor]["asked"] = list(asked)
    # ASD asks 3 questions about each of 2 pictures. The first step fills the occupancy grid, so the guesses behind it
    # are thrown away: rounds have 4, 4 and 1 slots.
    assert runs["in_process"]["asked"] == [6] * 9
    assert runs["experimental_batched"]["asked"] == [24, 24, 6]
    assert largest_difference(runs["experimental_batched"], runs["in_process"], start) < 1e-4


def test_autocast_is_each_slots_own(tmp_path):
    keys, precision = ("window=3", "threshold=1e30", "executor="), "trainer.precision=bf16-mixed"
    runs = [
        fit("sdf", tmp_path / executor, precision, picard=(*keys[:2], keys[2] + executor), steps=3)
        for executor in EXECUTORS
    ]
    assert_same(state_of(runs[1]), state_of(runs[0]))
    assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()


def test_a_resumed_run_ends_as_one_that_was_not_stopped(distill):
    """It has the same windows from the checkpoint on, and with them the same batches of the network."""
    keys, saves = ("window=3", "threshold=1e30", "executor=experimental_batched"), "checkpoint.every_n_train_steps=2"
    whole = distill("whole", saves, picard=keys, steps=5)[0]
    (saved,) = Path("whole/fit/run/ckpts").glob("*step=2.ckpt")
    resumed = distill("resumed", saves, f"resume='{saved}'", picard=keys, steps=5)[0]
    assert_same(state_of(resumed), state_of(whole))


@pytest.mark.parametrize("learning_teacher", ["state", "local"])
def test_a_teacher_that_learns_is_each_slots_own(learning_teacher, distill, asked):
    """VSD: the frozen teacher is asked once, the learning one by each slot with the weights of its point."""
    weights = {"geometry": {"lr": 0.01}, "background": {"lr": 0.01}, "guidance": {"lr": 0.01}}
    optimizer = {"name": "SGD", "args": {"lr": 0.01, "momentum": 0.9}, "params": weights}
    given = ("system.guidance_type=turboprop-vsd-guidance", "system.loss.lambda_lora=1")
    start = distill("start", *given, steps=1, picard=("window=1",), method="vsd", optimizer=optimizer)[0]
    runs, keys = {}, ("window=3", "threshold=1e30", f"learning_teacher={learning_teacher}")
    for executor in EXECUTORS:
        asked.clear()
        picard = (*keys, f"executor={executor}")
        run, log = distill(executor, *given, steps=3, picard=picard, method="vsd", optimizer=optimizer)
        losses = [float(row["train/loss_lora"]) for row in log if "train/loss_lora" in row]
        runs[executor] = {**run, "asked": list(asked), "losses": losses}
    one, other = runs["in_process"], runs["experimental_batched"]
    # The frozen teacher; the learning one; its training. Rounds of 3 and 2 slots, as the first one
    # fills the occupancy grid.
    assert one["asked"] == [4, 2, 2] * 5
    assert other["asked"] == [12, *[2, 2] * 3, 8, *[2, 2] * 2]
    adapters = [name for name in start["state_dict"] if "adapters" in name and name.endswith("lora_B")]
    assert all(not torch.equal(other["state_dict"][name], start["state_dict"][name]) for name in adapters)
    same = 3 if learning_teacher == "state" else 1  # local: it moves on from slot to slot, or from round to round
    assert other["losses"][:same] == pytest.approx(one["losses"][:same], rel=1e-5)
    assert (largest_difference(other, one, start) < 1e-4) is (learning_teacher == "state")


def test_processes_batch_their_own_slots(tmp_path):
    keys = ("window=4", "threshold=1e30")
    alone = fit("nerf", tmp_path / "alone", picard=keys, steps=6)
    two = fit_in_processes("nerf", tmp_path / "two", picard=(*keys, "executor=experimental_batched"), steps=6)
    assert_same(state_of(two), state_of(alone))


@pytest.mark.parametrize("kind", ["nerf", "gaussians"])
def test_a_threshold_of_zero_is_the_run_step_by_step(kind, distill):
    plain = distill("plain", MIXTURE, kind=kind)
    run = distill("run", MIXTURE, kind=kind, picard=("window=3", "threshold=0", "executor=experimental_batched"))
    assert_same(state_of(run[0]), state_of(plain[0]))
    assert all(row[2] >= 1 for row in run[0]["picard"]["history"])


def test_a_threshold_of_zero_with_a_network(distill):
    start = distill("start", steps=1, picard=("window=1",))[0]
    plain = distill("plain")[0]
    run = distill("run", picard=("window=3", "threshold=0", "executor=experimental_batched"))[0]
    assert largest_difference(run, plain, start) < 1e-4


def test_a_slot_that_is_not_finite_costs_itself_alone(distill, asked):
    """NaN goes through the network, and backwards through its encoder, beside the samples of the other slots."""
    start = distill("start", steps=1, picard=("window=1",))[0]
    given = ("system.guidance_type=test-bad-render-guidance", "system.guidance.method=asd")
    keys = ("window=4", "threshold=1e30")
    runs = {}
    for executor in EXECUTORS:
        asked.clear()
        runs[executor] = distill(executor, *given, picard=(*keys, f"executor={executor}"), steps=6)
    one, other = runs["in_process"][0], runs["experimental_batched"][0]
    assert [row[:3] for row in other["picard"]["history"]] == [row[:3] for row in one["picard"]["history"]]
    assert BAD_STEP in [row[0] for row in other["picard"]["history"]]  # the window ended before that step
    assert largest_difference(other, one, start) < 1e-4
    logged = runs["experimental_batched"][1]
    assert [row["train/skipped_steps"] for row in logged if "train/skipped_steps" in row][-1] == "1.0"


def test_an_error_in_a_slot_ends_the_run_with_it(distill):
    given = ("system.guidance_type=test-bad-render-guidance", "system.guidance.grad_clip=7")
    with pytest.raises(ValueError, match=f"no picture at step {BAD_STEP}"):
        distill("run", *given, picard=("window=4", "executor=experimental_batched"))


@pytest.mark.parametrize("multi_view", [False, True])
def test_an_amortized_generator(multi_view, tmp_path, monkeypatch, tiny_sd_folder, tiny_mv_folder, text_cache, asked):
    monkeypatch.chdir(tmp_path)
    shipped = ["--config", main_job.CONFIG, "--train", *main_job.SMALL]
    shipped += [main_job.library(tmp_path), main_job.model(tiny_sd_folder)]
    if multi_view:  # two prompts a step, a set of views of each
        shipped += ["data.view_sets=true", "data.n_view=4", f"system.guidance.ckpt_path={tiny_mv_folder}",
                    "system.guidance_type=mvdream-asynchronous-score-distillation-guidance"]  # fmt: skip
    ends, counts = [], []
    for executor in EXECUTORS:
        asked.clear()
        keys = [f"system.picard.{key}" for key in ("threshold=1e30", "window=2", f"executor={executor}")]
        system = "system_type=turboprop-multiprompt-generator-system:picard"
        assert main([*shipped, system, f"exp_root_dir={tmp_path / executor}", *keys]) == 0
        (last,) = (tmp_path / executor).glob("*/*/ckpts/last.ckpt")
        ends.append(torch.load(last, weights_only=True))
        counts.append((len(asked), sum(asked)))
    assert counts[1][0] < counts[0][0] and counts[1][1] == counts[0][1]  # fewer calls about the same samples
    moments = [end["optimizer_states"][0]["state"] for end in ends]
    for one, other in zip(moments[0].values(), moments[1].values(), strict=True):
        expected, found = one["exp_avg"], other["exp_avg"]
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


# ------------------------------------------------------------------------------------------------- parts


class Question:
    def __init__(self, key: str, value: int, patient: bool = False) -> None:
        self.key, self.value, self.patient = key, value, patient


def scheduler_of(log: list) -> CooperativeScheduler:
    context = {"now": None}

    def answer(questions):
        log.append((questions[0].key, [question.value for question in questions]))
        return [question.value * 10 for question in questions]

    return CooperativeScheduler(answer, lambda value: context.update(now=value), lambda: context["now"])


def test_tasks_meet_where_they_ask_for_the_same():
    log: list = []
    scheduler = scheduler_of(log)

    def task(index: int, questions: int) -> list:
        found = [scheduler.ask(Question("a", index)) for _ in range(questions)]
        return [*found, scheduler.ask(Question("last", index, patient=True))]

    results = scheduler.run([lambda: task(1, 1), lambda: task(2, 3), lambda: task(3, 2), list], None)
    assert results == [[10, 10], [20, 20, 20, 20], [30, 30, 30], []]
    assert log == [("a", [1, 2, 3]), ("a", [2, 3]), ("a", [2]), ("last", [1, 2, 3])]


def test_who_is_behind_is_served_first_so_that_ways_meet_again():
    log: list = []
    scheduler = scheduler_of(log)

    def task(index: int, first: str) -> int:
        scheduler.ask(Question(first, index))
        return scheduler.ask(Question("both", index))

    assert scheduler.run([lambda: task(1, "small"), lambda: task(2, "large")], None) == [10, 20]
    assert log == [("small", [1]), ("large", [2]), ("both", [1, 2])]


def test_an_error_ends_all_tasks():
    ended: list = []
    scheduler = scheduler_of([])

    def waiting(index: int) -> None:
        try:
            scheduler.ask(Question("a", index))
            scheduler.ask(Question("b", index))
        finally:
            ended.append(index)

    def failing() -> None:
        scheduler.ask(Question("a", 0))
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        scheduler.run([lambda: waiting(1), failing, lambda: waiting(2)], None)
    assert sorted(ended) == [1, 2]
    with pytest.raises(RuntimeError, match="only a task can ask"):
        scheduler.ask(Question("a", 0))


def test_a_teacher_that_draws_what_nobody_could_share_is_refused():
    class Drawing(MixtureTeacher):
        def encode(self, images, noise=None):
            return images + torch.randn_like(images)

    teacher, images = Drawing(None), torch.zeros(1, 3, 8, 8)
    with pytest.raises(RuntimeError, match="Drawing.encode draws random numbers.*executor=in_process"):
        answer_calls([TeacherCall(teacher.encode, (images, None), TorchModes.now(["cpu"]))] * 2)


def test_calls_that_differ_in_more_than_samples_have_other_keys():
    teacher, modes = MixtureTeacher(None), TorchModes.now(["cpu"])

    def key(size: int = 8, tokens: int = 5, dtype: torch.dtype = torch.float32, count: int = 1):
        condition = TextCondition(torch.zeros(count, tokens, 3))
        noisy = torch.zeros(count, 3, size, size, dtype=dtype)
        return TeacherCall(teacher.predict_noise, (noisy, torch.zeros(count, dtype=torch.long), condition), modes).key

    assert key() == key(count=4) and hash(key()) == hash(key(count=4))
    assert len({key(), key(size=4), key(tokens=6), key(dtype=torch.float64)}) == 4


def test_sets_of_other_sizes_have_other_keys():
    teacher, modes = MixtureTeacher(None), TorchModes.now(["cpu"])

    def key(views: int):
        condition = MultiViewCondition(torch.zeros(4, 5, 3), torch.zeros(4, 16), views)
        asked = (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long), condition)
        return TeacherCall(teacher.predict_noise, asked, modes).key

    assert key(4) == key(4) and key(4) != key(2)


def test_the_noise_of_an_encoding_is_what_encode_draws(tiny_sd_folder):
    teacher = LatentDiffusionTeacher.from_pretrained(str(tiny_sd_folder))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(3)
    own = teacher.encode(images)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    noise = teacher.encoding_noise(images)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(teacher.encode(images, noise), own) and torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"executor": "threads"},
            "system.picard.executor: expected one of in_process, experimental_batched, got 'threads'",
        ),
        ({"executor": "batched"}, "executor: batched is experimental; its name is experimental_batched now"),
        ({"batched_slots": 2}, "batched_slots: there is no such key any more; a smaller window does"),
    ],
)
def test_impossible_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        picard_config(given)
