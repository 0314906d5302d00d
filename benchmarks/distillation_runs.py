"""One run of the distillation benchmark: what it is, the config that it trains, its record, and whether that holds."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launching import keep_record, launch, record_in
from omegaconf import OmegaConf
from turboprop.teachers.weights import part_classes, part_folder
from turboprop.world.captions import ObjectSpec, caption, short_captions
from turboprop.world.library import SIXTEEN

import threestudio
from threestudio.utils.config import load_config

ROOT = Path(__file__).resolve().parents[1]
ASD = "turboprop-asd-guidance"


@dataclass(frozen=True)
class Method:
    """A way to distil, as a config names it."""

    title: str
    guidance_type: str
    keys: dict[str, Any] = field(default_factory=dict)  # of system.guidance
    scale: float | None = None  # guidance scale; None: the best of its own, which a search finds
    paper: str = ""  # its name in the paper's tables


METHODS = {
    "asd-0": Method("ASD, no shift", ASD, {"plus_ratio": 0.0}),
    "asd-fixed-0.1": Method("ASD, shift 0.1", ASD, {"plus_ratio": 0.1, "plus_random": False}),
    "asd-random-0.1": Method("ASD, shift up to 0.1", ASD, {"plus_ratio": 0.1, "plus_random": True}, paper="ASD"),
    "asd-random-0.2": Method("ASD, shift up to 0.2", ASD, {"plus_ratio": 0.2, "plus_random": True}),
    "asd-random-2": Method("ASD, shift up to 2", ASD, {"plus_ratio": 2.0, "plus_random": True}),
    "sds": Method("SDS", "turboprop-sds-guidance"),
    "sds-7.5": Method("SDS at 7.5", "turboprop-sds-guidance", scale=7.5),
    "sds-100": Method("SDS at 100", "turboprop-sds-guidance", scale=100.0, paper="SDS"),
    "csd": Method("CSD", "turboprop-csd-guidance", paper="CSD"),
    "normalized-csd": Method("normalised CSD", "turboprop-normalized-csd-guidance"),
    # adapters of so small a network learn too slowly at ProlificDreamer's 1e-4
    "vsd": Method("VSD", "turboprop-vsd-guidance", {"learning_rate": 1e-3}, paper="VSD"),
}
TEACHERS = {  # name: its folder, keys of system.guidance
    "mini-sd": ("assets/teachers/mini-sd", {"view_dependent_prompting": True, "n_view": 1}),
    "mini-mv": ("assets/teachers/mini-mv", {"view_dependent_prompting": False}),
}
SYSTEMS = {"3dconv": "asd-3dconv", "nerf": "asd-nerf"}  # name: its config
CAPTIONS: dict[str, Callable[[ObjectSpec], str]] = {  # name: how an object is asked for
    "full": caption,  # a red chair with blue legs
    "color": lambda spec: short_captions(spec)[0],  # a red chair
    "kind": lambda spec: short_captions(spec)[1],  # a chair
}
# Scales are sought on two kinds that no table has: so no short caption of the search is in a table either.
SEARCHED = (ObjectSpec("umbrella", "blue", "white"), ObjectSpec("duck", "yellow", "orange"))
TABLE = tuple(spec for spec in SIXTEEN if spec.kind not in {sought.kind for sought in SEARCHED})
NERF_KINDS = ("car", "chair", "house", "sofa")
# What says where a run is, and not what it is.
PLACES = ("name", "description", "tag", "timestamp", "use_timestamp", "exp_root_dir", "exp_dir")
PLACES += ("trial_name", "trial_dir")


@dataclass(frozen=True)
class Run:
    """One launch."""

    system: str
    teacher: str
    captions: str
    method: str
    scale: float
    seed: int
    prompts: tuple[str, ...]  # of a NeRF one, of a generator all that it learns
    search: bool  # for a method's best scale

    @property
    def folder(self) -> Path:
        """Its place within the outputs."""
        part = "search" if self.search else "table"
        method = f"{self.method}@{self.scale:g}"
        place = Path(part, self.system, self.teacher, self.captions, method, f"seed-{self.seed}")
        return place / self.prompts[0].replace(" ", "_") if self.system == "nerf" else place

    def __str__(self) -> str:
        what = f" {self.prompts[0]!r}" if self.system == "nerf" else f" {len(self.prompts)} prompts"
        part = "search, " if self.search else ""
        where = f"{part}{self.system}, {self.teacher}, {self.captions}"
        return f"{where}, {self.method} at {self.scale:g}, seed {self.seed},{what}"


@dataclass(frozen=True)
class Settings:
    """What all runs of one command share."""

    outputs: Path
    threads: int
    teachers: dict[str, str]  # name: folder
    changes: dict[str, tuple[str, ...]]  # system: key=value, given by the user


def specs_of(system: str, search: bool, count: int | None) -> tuple[ObjectSpec, ...]:
    """The objects of a system's table, or of the search; `count`: the first so many."""
    if search:
        return SEARCHED
    specs = TABLE if system == "3dconv" else tuple(spec for spec in TABLE if spec.kind in NERF_KINDS)
    return specs[:count]


def overrides(run: Run, settings: Settings, library: str) -> list[str]:
    """The keys that make a system's config this run. `library`: the file with its prompts, where it takes one."""
    method, (_, teacher_keys) = METHODS[run.method], TEACHERS[run.teacher]
    keys = {**teacher_keys, **method.keys, "guidance_scale": run.scale}
    given = [
        f"seed={run.seed}",
        f"system.prompt_processor.pretrained_model_name_or_path={settings.teachers[run.teacher]}",
        f"system.guidance_type={method.guidance_type}",
        *(f"system.guidance.{key}={str(value).lower()}" for key, value in keys.items()),
    ]
    if run.system == "nerf":
        given += [f"system.prompt_processor.prompt={run.prompts[0]}"]
    else:
        given += [f"data.prompt_library={library}", *(["data.batch_size=1"] if run.search else [])]
    return given + [*settings.changes.get(run.system, ())]


def fingerprint(run: Run, settings: Settings, digests: dict[str, str]) -> dict[str, str]:
    """All that a run's result rests on, flat: keys of its resolved config, its prompts, and digests of model folders.

    Raises:
        UserError: a config that does not resolve, or that its guidance does not take.
    """
    config = load_config(
        str(ROOT / "configs" / f"{SYSTEMS[run.system]}.yaml"),
        cli_args=["tag=trial", "use_timestamp=false", *overrides(run, settings, "prompts.json")],
    )
    threestudio.find(config.system.guidance_type).returned_losses(config.system.guidance)
    plain = OmegaConf.to_container(config, resolve=True)
    flat = _flat({key: value for key, value in plain.items() if key not in PLACES})
    judge = plain["system"].get("judge") or plain["system"].get("evaluation", {}).get("judge")
    folders = {"teacher": settings.teachers[run.teacher], **({"judge": judge} if judge else {})}
    for name, folder in folders.items():
        if folder not in digests:
            digests[folder] = digest_of(ROOT / folder)
        flat[f"{name} weights"] = digests[folder]
    return {**flat, "prompts": json.dumps(run.prompts)}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if not isinstance(value, dict):
        return {path: json.dumps(value)}
    parts = (_flat(item, f"{path}.{key}" if path else str(key)) for key, item in value.items())
    return {key: text for part in parts for key, text in part.items()}


def digest_of(folder: Path) -> str:
    """SHA-256 over all files of a model folder, with those of the parts that it shares with another."""
    folders = [folder]
    if (folder / "model_index.json").is_file():
        folders += [part_folder(folder, part) for part in part_classes(str(folder))]
    digest = hashlib.sha256()
    for place in dict.fromkeys(path.resolve() for path in folders):
        for path in sorted(place.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(place)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def digest_of_config(found: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def record_of(run: Run, settings: Settings) -> dict | None:
    return record_in(settings.outputs / run.folder)


def changes_since(record: dict, now: dict[str, str]) -> list[str]:
    """What a finished run rested on that is otherwise now: the keys; none if it still holds."""
    if record["hash"] == digest_of_config(now):
        return []
    before = record["fingerprint"]
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def execute(run: Run, settings: Settings, now: dict[str, str], machine: str) -> dict:
    """Launches a run from its start, and keeps its record if it ends well. What was in its folder goes.

    Raises:
        RuntimeError: it failed; with the last line of its log.
    """
    folder = settings.outputs / run.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    library = folder / "prompts.json"
    library.write_text(json.dumps({"train": run.prompts}))
    given = [f"exp_root_dir={folder}", "tag=trial", "use_timestamp=false", *overrides(run, settings, str(library))]
    arguments = ["--config", f"configs/{SYSTEMS[run.system]}.yaml", "--train", *given]
    code, seconds = launch(arguments, folder, settings.threads)
    found = sorted(folder.glob("*/trial/save/it*-evaluation/evaluation.json"))
    if code != 0 or not found:
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"exit code {code}: {lines[-1] if lines else 'no output'} ({folder / 'log.txt'})")
    evaluation = json.loads(found[-1].read_text())
    record = {
        "run": asdict(run),
        "hash": digest_of_config(now),
        "fingerprint": now,
        "machine": machine,
        "threads": settings.threads,
        "seconds": seconds,
        **{key: evaluation[key] for key in ("mean", "prompts", "empty_meshes", "views")},
    }
    keep_record(folder, record)
    return record
