"""A window of Picard iterations on one device: its slots one by one, and with one call of the teacher for all.

    python benchmarks/picard_batched.py --write
    python benchmarks/picard_batched.py --size sd21 --write        # Stable Diffusion 2.1's size, on a GPU

Trains configs/asd-nerf.yaml by batch and window: step by step, by Picard with `executor: in_process` and with
`executor: batched`. Every guess is near enough here, so strides are full: figures are the wall clock of a step in the
best case, and a shorter stride divides the gain. Runs alternate, --repeats times; medians over rounds. `--size sd21`
has random weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from reporting import machine, write_report  # noqa: E402
from torch import Tensor  # noqa: E402

import threestudio  # noqa: E402
from threestudio.utils.base import BaseObject  # noqa: E402
from threestudio.utils.config import load_config  # noqa: E402
from threestudio.utils.extensions import load_extensions  # noqa: E402
from threestudio.utils.memory import keep_freed_memory  # noqa: E402

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
WAYS = {"step by step": None, "in_process": "in_process", "batched": "experimental_batched"}
SIZES = {
    "mini-sd": [],
    "sd21": [
        "system.guidance.teacher_type=benchmark-sd21-teacher", "system.prompt_processor_type=benchmark-sd21-prompts",
        "data.width=64", "data.height=64",
    ],
}  # fmt: skip
SD21_UNET = {  # stabilityai/stable-diffusion-2-1-base, unet/config.json
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024, "use_linear_projection": True,
}  # fmt: skip
SD21_VAE = {  # vae/config.json
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 768,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


@threestudio.register("benchmark-sd21-teacher")
def sd21_teacher(cfg: Any) -> Any:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from turboprop.teachers.latent_diffusion import LatentDiffusionTeacher
    from turboprop.teachers.noise_schedule import scaled_linear_alphas_cumprod

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    with device, torch.random.fork_rng():
        torch.manual_seed(0)
        unet, vae = UNet2DConditionModel(**SD21_UNET), AutoencoderKL(**SD21_VAE)
    schedule = scaled_linear_alphas_cumprod().to(device)
    return LatentDiffusionTeacher(unet.to(dtype), vae.to(dtype), schedule, "epsilon")


@threestudio.register("benchmark-sd21-prompts")
class RandomPrompts(BaseObject):
    """Embeddings of the size of Stable Diffusion 2.1's, for any prompt."""

    @dataclass
    class Config(BaseObject.Config):  # the config's keys, which have no part in it
        pretrained_model_name_or_path: str = ""
        prompt: str = ""

    use_perp_neg = False

    def configure(self) -> None:
        width = SD21_UNET["cross_attention_dim"]
        self.embeddings = torch.randn(2, 77, width, generator=torch.Generator().manual_seed(0)).to(self.device)

    def __call__(self) -> "RandomPrompts":
        return self

    def get_text_embeddings(self, elevation: Tensor, *others: Any) -> Tensor:
        return self.embeddings.repeat_interleave(elevation.shape[0], 0)  # [2B, 77, D]


class Times(pl.Callback):
    """When the steps ended."""

    def __init__(self, device: torch.device, clock: str) -> None:
        self.device, self.clock, self.ends = device, CLOCKS[clock], []

    def on_train_batch_end(self, *args: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(self.clock())


def run(args: argparse.Namespace, batch: int, window: int, executor: str | None) -> Dict[str, Any]:
    """Seconds a step, of each round but the first; and on a GPU the most memory, in bytes."""
    given = [f"data.batch_size={batch}", f"seed={args.seed}"]
    base = load_config(str(args.config)).system_type
    if executor:
        given.append(f"system_type={base}{',' if ':' in base else ':'}picard")
        keys = {"window": window, "threshold": 1e30, "executor": executor, "report": "false"}
        given += [f"system.picard.{key}={value}" for key, value in keys.items()]
    cfg = load_config(str(args.config), cli_args=[*SIZES[args.size], *given, *args.overrides])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = threestudio.find(cfg.data_type)(cfg.data)
    system = threestudio.find(cfg.system_type)(cfg.system)
    system.run_seed = args.seed
    times = Times(device, args.clock)
    trainer = pl.Trainer(
        max_steps=window * (args.rounds + 1), callbacks=[times], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, accelerator=device.type, devices=1,
    )  # fmt: skip
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(system, datamodule=data)
    ends = times.ends[window - 1 :: window]
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {"seconds": [(later - ended) / window for ended, later in zip(ends, ends[1:])], "memory": memory}


def measure(args: argparse.Namespace) -> List[Dict[str, Any]]:
    rows = []
    for batch, window in itertools.product(args.batches, args.windows):
        found: Dict[str, List[Dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(args.repeats):
            for way, executor in WAYS.items():
                found[way].append(run(args, batch, window, executor))
        seconds = {way: statistics.median(s for one in runs for s in one["seconds"]) for way, runs in found.items()}
        memory = {way: runs[0]["memory"] for way, runs in found.items()}
        rows.append({"batch": batch, "window": window, "seconds": seconds, "memory": memory})
        print(rows[-1], flush=True)
    return rows


def table(rows: List[Dict[str, Any]]) -> List[str]:
    lines = [
        "| batch | window | step by step (s) | in_process (s) | batched (s) | batched: faster by | memory (GiB) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        plain, alone, together = (row["seconds"][way] for way in WAYS)
        memory = ", ".join(f"{value / 2**30:.1f}" for value in row["memory"].values() if value is not None)
        lines.append(
            f"| {row['batch']} | {row['window']} | {plain:.4f} | {alone:.4f} | {together:.4f} | "
            f"{plain / together:.2f} | {memory} |"
        )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="mini-sd", help="of the teacher")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "asd-nerf.yaml")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 1 2 4; of sd21 1 2 3 4")
    parser.add_argument("--windows", nargs="+", type=int, default=[4, 7])
    parser.add_argument("--rounds", type=int, default=5, help="timed, of each run; one more to warm up")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: the processor's time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks/picard_batched[_sd21].{md,json}")
    parser.add_argument("overrides", nargs="*", help="after --: keys of the config, key=value")
    args = parser.parse_args()
    if args.size == "sd21" and not torch.cuda.is_available():
        raise SystemExit("--size sd21 takes a GPU: a step takes minutes without one")
    args.batches = args.batches or ([1, 2, 3, 4] if args.size == "sd21" else [1, 2, 4])
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "threestudio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    keep_freed_memory()
    load_extensions()
    rows = measure(args)
    command = " ".join(["python benchmarks/picard_batched.py", *sys.argv[1:]])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = "; memory: the most allocated, in the same order" if device.type == "cuda" else ""
    text = [
        f"# A window of Picard iterations on one device, {args.size}", "",
        f"Command: `{command}` ({machine(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}; seed "
        f"{args.seed}; medians of {args.repeats * args.rounds} rounds, seconds a step by the {args.clock} clock at "
        f"full strides{memory}).", "",
        *table(rows), "",
    ]  # fmt: skip
    print("\n".join(text))
    if args.write:
        name = "picard_batched" if args.size == "mini-sd" else f"picard_batched_{args.size}"
        write_report(name, "\n".join(text), {"command": command, "machine": machine(device), "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
