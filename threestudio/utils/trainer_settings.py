"""What a config says of the Trainer and its checkpoints, checked, and made to fit this machine."""

import os
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint

import threestudio
from threestudio.utils.argument_checks import at_least, check_arguments, tried
from threestudio.utils.errors import UserError
from threestudio.utils.value_checks import check_choice, shown

_ACCELERATORS = ("cpu", "gpu", "cuda", "auto")
_LAUNCHER_SETS = ("callbacks", "logger", "plugins", "default_root_dir", "enable_checkpointing")
MIXED_PRECISIONS = ("16", "16-mixed", "bf16", "bf16-mixed")
# A Trainer's names of those in which weights are not rounded and losses not scaled.
UNSCALED_PRECISIONS = ("32-true", "64-true", "bf16-mixed")
# What Lightning looks at only while it trains, or not at all.
_TRAINER_LIMITS = {
    "check_val_every_n_epoch": 1,
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
    "gradient_clip_val": 0,
    "min_steps": -1,
    "min_epochs": 0,
    "reload_dataloaders_every_n_epochs": 0,
}


def trainer_arguments(cfg: DictConfig, on_gpu: bool) -> dict[str, Any]:
    """The config's arguments of the Trainer, with the devices that this machine has. Raises UserError."""
    arguments = OmegaConf.to_container(cfg.trainer, resolve=True)
    for name in [name for name, value in arguments.items() if value == ""]:
        arguments[name] = None  # key="" of the command line
    check_arguments(pl.Trainer, arguments, "trainer", _LAUNCHER_SETS)
    at_least(arguments, _TRAINER_LIMITS, "trainer")
    interval = arguments.get("val_check_interval")
    if isinstance(interval, bool) or (isinstance(interval, (int, float)) and not interval > 0):
        raise UserError(f"trainer.val_check_interval: expected a number of steps more than 0, got {shown(interval)}")
    arguments.setdefault("enable_model_summary", False)
    arguments.setdefault("inference_mode", False)  # normals are gradients, in evaluation too
    arguments.setdefault("accelerator", "gpu" if on_gpu else "cpu")
    check_choice("trainer.accelerator", arguments["accelerator"], _ACCELERATORS)
    if not on_gpu:
        arguments["accelerator"] = "cpu"
    arguments.setdefault("devices", -1 if arguments["accelerator"] == "gpu" else 1)
    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun, as LOCAL_WORLD_SIZE: those of this machine
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if processes > here:
        arguments.setdefault("num_nodes", processes // here)
    if arguments["accelerator"] == "cpu":
        arguments["devices"] = here
        if processes > 1:
            arguments["strategy"] = "ddp"
        if str(arguments.get("precision", 32)) in ("16", "16-mixed", "16-true"):
            threestudio.info(f"precision {arguments['precision']} is for GPUs: 32 on the CPU.")
            arguments["precision"] = 32
    _try_trainer(arguments)
    _check_clipping(cfg, arguments)
    return arguments


def _check_clipping(cfg: DictConfig, arguments: dict[str, Any]) -> None:
    """Lightning refuses the first step of a fused optimizer whose gradients are clipped in a mixed precision."""
    fused = OmegaConf.select(cfg, "system.optimizer.args.fused")
    mixed = str(arguments.get("precision", 32)) in MIXED_PRECISIONS
    if fused and mixed and (arguments.get("gradient_clip_val") or 0) > 0:
        raise UserError(
            "system.optimizer.args.fused: a fused optimizer does not go with trainer.gradient_clip_val in "
            f"{arguments['precision']}; set it to false, or trainer.gradient_clip_val to 0"
        )


def _try_trainer(arguments: dict[str, Any]) -> None:
    """Raises UserError where no Trainer can be built of the arguments; it names the one that is to blame."""
    fixed = {"logger": False, "enable_checkpointing": False}
    tried(lambda given: pl.Trainer(**fixed, **given), arguments, "trainer")


def checkpoint_arguments(cfg: DictConfig) -> dict[str, Any]:
    """The config's arguments of ModelCheckpoint. Raises UserError."""
    arguments = OmegaConf.to_container(cfg.checkpoint, resolve=True)
    # A resumed run overwrites its own last.ckpt instead of writing a last-v1.ckpt beside it.
    arguments.setdefault("enable_version_counter", False)
    check_arguments(ModelCheckpoint, arguments, "checkpoint", ("dirpath",))
    tried(lambda given: ModelCheckpoint(dirpath=".", **given), arguments, "checkpoint")
    filename = arguments.get("filename")
    if filename is not None and (os.path.isabs(filename) or ".." in filename.replace("\\", "/").split("/")):
        raise UserError(f"checkpoint.filename: expected a name inside the trial's ckpts, got '{filename}'")
    return arguments
