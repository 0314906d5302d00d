"""The runs of the novel-view benchmark: what each variant trains with, and one run from its start or its checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from distillation_runs import digest_of
from launching import keep_record, record_in
from turboprop.novelview.image_encoders import quiet_transformers, read_encoder
from turboprop.novelview.model import NovelViewSettings
from turboprop.novelview.timestep_sampling import TimestepSampling, interpolated_noise_shift
from turboprop.novelview.training import TrainingRule
from turboprop.small_models.recipes import mini_novelview
from turboprop.small_models.settings import computes_bfloat16, pipeline_of
from turboprop.small_models.training import TrainingOptions, train
from turboprop.small_models.view_pairs import ViewPairPool
from turboprop.world.dataset import ViewBank

from threestudio.utils.misc import C

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "teacher": "assets/teachers/mini-sd",  # its autoencoder and noise schedule
    "dino": "assets/encoders/mini-dino",
    "clip": "assets/judges/mini-clip",  # its vision tower
}
UNIFORM = TimestepSampling("uniform")
GAUSSIAN = TimestepSampling("truncated_normal", 1000.0, 200.0)
# When held-out figures are taken, as shares of a whole run's time; and at its end.
FIGURE_SHARES = (0.03, 0.05, 1 / 14, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6, 0.8)


@dataclass(frozen=True)
class Variant:
    """How a model is trained, where variants differ. As it stands: Efficient-3DiM's three ideas together."""

    title: str
    timesteps: TimestepSampling = GAUSSIAN
    # The mean as it moves: the share of the steps where it begins to, two means, the share where it ends. None: fixed.
    moving_mean: tuple[float, float, float, float] | None = None
    noise_shift: float = 1.0  # divides the schedule's last signal-to-noise ratio
    min_snr_gamma: float = 0.0  # 0: every timestep counts the same
    dino: bool = True  # mini-dino's patches and, in the down path, features of its layers; else one CLIP token
    quick: bool = True  # 16 bits where the device computes them, and a rate that falls at the end
    share: float = 1.0  # of the whole time

    @property
    def cooldown(self) -> float:
        """The last share of the steps, in which the rate falls."""
        return 0.2 if self.quick else 0.0

    @property
    def encoder(self) -> str:
        return "dino" if self.dino else "clip"

    def model_settings(self) -> NovelViewSettings:
        """mini-novelview's, or zero-1-to-3's single token; the null condition is the same in both."""
        return mini_novelview.SETTINGS if self.dino else NovelViewSettings(tokens="pooled")

    def rule(self, steps: int) -> Callable[[int], TrainingRule]:
        """How each of `steps` steps draws; without changes of the picture's look, in every variant."""
        fixed = TrainingRule(self.timesteps, min_snr_gamma=self.min_snr_gamma)
        if self.moving_mean is None:
            return lambda step: fixed
        begin, high, low, end = self.moving_mean
        schedule = [round(begin * steps), high, low, round(end * steps)]
        return lambda step: replace(fixed, timesteps=replace(self.timesteps, mean=float(C(schedule, 0, step))))


BASELINE, WHOLE, TENTH = "zero123", "ours", "ours-tenth"
CLAIM = {  # trained for the same time
    BASELINE: Variant("zero-1-to-3's recipe", timesteps=UNIFORM, dino=False, quick=False),
    WHOLE: Variant("ours, whole"),
    TENTH: Variant("ours, whole, in a tenth of the time", share=0.1),
    "ours-uniform": Variant("ours without the timesteps", timesteps=UNIFORM),
    "ours-clip": Variant("ours without the features", dino=False),
    "ours-plain": Variant("ours without the quick training", quick=False),
    "ours-half": Variant("ours, half of the timesteps uniform", timesteps=replace(GAUSSIAN, uniform_share=0.5)),
}
LEFT_OUT = {
    "ours-uniform": "timestep sampling",
    "ours-clip": "DINO's patches and features",
    "ours-plain": "the quick training",
}
SAMPLERS = {  # trained for the same steps; all else as in `ours`
    "uniform": Variant("uniform", timesteps=UNIFORM),
    "gaussian": Variant("Gaussian, mean 1000, std 200 (Efficient-3DiM)"),
    "half": Variant("half Gaussian, half uniform", timesteps=replace(GAUSSIAN, uniform_share=0.5)),
    # MOVIS leaves the mean at 1000 for the first steps, and brings it to 500
    "moving-mean": Variant(
        "Gaussian, mean 1000, from 0.4 to 0.6 of the steps to 500", moving_mean=(0.4, 1e3, 5e2, 0.6)
    ),
    "logit-normal": Variant("logit-normal, mean 0, std 1 (SD 3)", timesteps=TimestepSampling("logit_normal", 0.0, 1.0)),
    "noise-shift": Variant("uniform, noise shifted by 8 (MV-Adapter)", timesteps=UNIFORM, noise_shift=8.0),
    "min-snr": Variant("uniform, min-SNR weights, gamma 5", timesteps=UNIFORM, min_snr_gamma=5.0),
}
TABLES = {"claim": CLAIM, "samplers": SAMPLERS}


@dataclass(frozen=True)
class Size:
    """How large the runs of one command are."""

    minutes: float  # of training of a whole run of the claim
    steps: int  # of a run of the samplers' table
    batch: int  # pairs a step
    learning_rate: float  # on the plateau, in every variant
    pool: int  # objects in the pool of pairs, from four cameras each
    measured_objects: int  # held out
    measured_views: int  # of each
    sampling_steps: int
    bins: int = 10  # equal ranges of timesteps whose held-out losses are taken
    warmup: int = 100  # steps, in which the rate rises, as zero-1-to-3's; fewer in a run of a share of the time

    def plan(self) -> mini_novelview.FigurePlan:
        return mini_novelview.FigurePlan(
            self.measured_objects, self.measured_views, self.sampling_steps, sets=("held_out",), bins=self.bins
        )


@dataclass(frozen=True)
class Run:
    """One training."""

    table: str
    name: str  # of its variant
    seed: int

    @property
    def variant(self) -> Variant:
        return TABLES[self.table][self.name]

    def __str__(self) -> str:
        return f"{self.table}, {self.name}, seed {self.seed}"


class Workshop:
    """What all runs share: the device, the parts that are not trained, and each seed's pool of encoded pairs."""

    def __init__(self, device: torch.device, size: Size, bank: ViewBank, bank_file: Path, outputs: Path) -> None:
        self.device, self.size, self.bank, self.outputs = device, size, bank, outputs
        self.bfloat16 = device.type == "cuda" or computes_bfloat16()
        self.digests = {name: digest_of(ROOT / folder) for name, folder in FOLDERS.items()}
        self.digests["views"] = hashlib.sha256(bank_file.read_bytes()).hexdigest()
        self._base: Any = None
        self._pool: tuple[int, ViewPairPool] | None = None

    @property
    def base(self) -> Any:
        if self._base is None:
            with quiet_transformers():
                self._base = pipeline_of(ROOT / FOLDERS["teacher"], self.device)
        return self._base

    def pool(self, seed: int) -> ViewPairPool:
        """The pairs of all runs of a seed, encoded once and never drawn anew; that time is no run's."""
        if self._pool is None or self._pool[0] != seed:
            steps_of_a_pool = 2**62
            self._pool = seed, ViewPairPool(self.bank, self.base.vae, self.size.pool, steps_of_a_pool, seed)
            self._pool[1].refresh(0)
        return self._pool[1]

    def fingerprint(self, run: Run) -> dict[str, Any]:
        """All that a run's result rests on, but for the code and the machine."""
        variant = {key: value for key, value in asdict(run.variant).items() if key != "title"}
        plain = asdict(self.size)
        plain.pop("steps" if run.table == "claim" else "minutes")
        settings = asdict(run.variant.model_settings())
        digests = {name: self.digests[name] for name in ("teacher", "views", run.variant.encoder)}
        optimisation = asdict(self.options(run))
        for key in ("report_every", "checkpoint_every", "steps", "compiled"):
            optimisation.pop(key)
        return {
            "seed": run.seed, "device": self.device.type, "variant": variant, "size": plain, "model": settings,
            "training": optimisation, "digests": digests,
        }  # fmt: skip

    def folder(self, run: Run) -> Path:
        """A run that rests on something else has a folder of its own, so that no checkpoint is of another run."""
        text = json.dumps(self.fingerprint(run), sort_keys=True)
        short = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self.outputs / run.table / run.name / f"seed-{run.seed}" / short

    def record(self, run: Run) -> dict | None:
        """What a finished run has measured."""
        return record_in(self.folder(run))

    def options(self, run: Run) -> TrainingOptions:
        variant, size = run.variant, self.size
        common = TrainingOptions(
            steps=size.steps,
            learning_rate=size.learning_rate,
            warmup=max(1, round(size.warmup * variant.share)),
            cooldown=variant.cooldown,
            average_decay=0.9993,
            bfloat16=variant.quick and self.bfloat16,
            seed=run.seed,
            figures_every=2**62,
        )
        if run.table == "samplers":
            return common
        minutes = size.minutes * variant.share
        shares = FIGURE_SHARES if variant.share == 1.0 else ()
        return replace(
            common,
            steps=2**62,
            minutes=minutes,
            figures_at=tuple(share * minutes for share in shares),
            processor_time=self.device.type == "cpu",
        )

    def execute(self, run: Run, machine: str, report: Callable[[str], None]) -> dict | None:
        """Trains a run to its end and keeps its record; None where it was asked to stop, with a checkpoint left."""
        variant, options, folder = run.variant, self.options(run), self.folder(run)
        encoder = read_encoder(ROOT / FOLDERS[variant.encoder])
        alphas = self.base.scheduler.alphas_cumprod
        if variant.noise_shift != 1.0:
            alphas = interpolated_noise_shift(alphas, variant.noise_shift)
        recipe = mini_novelview.MiniNovelView(
            self.bank, self.base, encoder, self.size.batch, run.seed, self.size.plan(), variant.model_settings(),
            variant.rule(options.steps), alphas, self.pool(run.seed),
        )  # fmt: skip
        averages, state = train(recipe, options, folder, report)
        if state.step < state.steps:
            return None
        record = {
            "table": run.table,
            "variant": run.name,
            "seed": run.seed,
            "machine": machine,
            "threads": torch.get_num_threads(),
            "precision": "bfloat16" if options.bfloat16 else "float32",
            "parameters": sum(p.numel() for module in averages.values() for p in module.parameters()),
            "steps": state.step,
            "minutes": state.seconds / 60,
            "history": state.history,
            "fingerprint": self.fingerprint(run),
        }
        keep_record(folder, record)
        for name in ("last.pt", "plateau.pt"):
            (folder / name).unlink(missing_ok=True)  # 50 MB each, of no use any more
        return record
