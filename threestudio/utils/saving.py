"""SaverMixin: everything that a system writes goes through it, into the trial's `save` folder."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from threestudio.utils import glb_files, images, mesh_files, video
from threestudio.utils.config import parse_structured
from threestudio.utils.errors import UserError
from threestudio.utils.staged_files import staged


@dataclass
class WandbConfig:
    """`loggers.wandb`: Weights & Biases."""

    enable: bool = False
    project: Any = None  # a text; null: the package's default, as for name
    name: Any = None  # of the run; upstream's configs have None, which YAML takes for a text


@dataclass
class LoggersConfig:
    wandb: dict = field(default_factory=dict)  # WandbConfig


class SaverMixin:
    _save_dir: str | None = None
    _wandb_logger: Any = None

    # ------------------------------------------------------------------------------ where to

    def set_save_dir(self, save_dir: str) -> None:
        self._save_dir = save_dir

    def get_save_dir(self) -> str:
        if self._save_dir is None:
            raise ValueError("no folder to save into: call set_save_dir first")
        return self._save_dir

    def get_save_path(self, filename: str) -> str:
        """The path of `filename` in the save folder, with its folders made."""
        root = Path(self.get_save_dir())
        path = root / filename
        if not path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"'{filename}' lies outside of the save folder {root}")
        path.parent.mkdir(parents=True, exist_ok=True)
        return str(path)

    def convert_data(self, data: Any) -> Any:
        return images.to_numpy(data)

    # ------------------------------------------------------------------------------- loggers

    def create_loggers(self, cfg_loggers: Any) -> None:
        """Opens Weights & Biases if `loggers.wandb.enable` says so; it is imported only then.

        Raises UserError for another logger, for a wrong entry, and where the package is missing.
        """
        loggers: LoggersConfig = parse_structured(LoggersConfig, cfg_loggers)
        wandb: WandbConfig = parse_structured(WandbConfig, loggers.wandb)
        if not wandb.enable:
            return
        from pytorch_lightning.loggers import WandbLogger

        try:
            self._wandb_logger = WandbLogger(project=wandb.project, name=wandb.name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"system.loggers.wandb: the package wandb is missing (pip install wandb): {error}"
            ) from error

    def get_loggers(self) -> list:
        return [self._wandb_logger] if self._wandb_logger is not None else []

    def _log_image(self, name: str | None, path: str, step: int | None) -> None:
        if name is not None and self._wandb_logger is not None:
            self._wandb_logger.log_image(key=name, images=[path], step=step)

    # -------------------------------------------------------------------------------- images

    def _save_picture(self, filename: str, picture: np.ndarray, name: str | None, step: int | None) -> str:
        (path,) = self.save_written(filename, Image.fromarray(picture).save)
        self._log_image(name, path, step)
        return path

    def save_rgb_image(
        self,
        filename: str,
        img: Any,  # [H, W, C], or [C, H, W]
        data_format: str = "HWC",
        data_range: tuple[float, float] = (0, 1),
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        picture = images.rgb_image(img, data_format, data_range)
        return self._save_picture(filename, picture, name, step)

    def save_uv_image(
        self,
        filename: str,
        img: Any,  # [H, W, 2], or [2, H, W]
        data_format: str = "HWC",
        data_range: tuple[float, float] = (0, 1),
        cmap: str = "checkerboard",
    ) -> str:
        picture = images.uv_image(img, data_format, data_range, cmap)
        return self._save_picture(filename, picture, None, None)

    def save_grayscale_image(
        self,
        filename: str,
        img: Any,  # [H, W]
        data_range: tuple[float, float] | None = None,
        cmap: str | None = "jet",
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        picture = images.grayscale_image(img, data_range, cmap)
        return self._save_picture(filename, picture, name, step)

    def save_image_grid(
        self,
        filename: str,
        imgs: list,
        align: images.Align = "max",
        name: str | None = None,
        step: int | None = None,
        texts: list[str] | None = None,
    ) -> str:
        """`imgs` is a row of `{"type": "rgb|uv|grayscale", "img", "kwargs"}`, or a list of rows."""
        return self._save_picture(filename, images.image_grid(imgs, align, texts), name, step)

    def save_image(self, filename: str, img: Any) -> str:
        """`img`: [H, W, C] or [H, W], uint8."""
        picture = images.to_numpy(img)
        if picture.dtype != np.uint8:
            raise ValueError(f"save_image takes uint8; got {picture.dtype}")
        return self._save_picture(filename, picture, None, None)

    def save_cubemap(self, filename: str, img: Any, data_range: tuple[float, float] = (0, 1), **kwargs: Any) -> str:
        """`img`: [6, H, W, C]."""
        return self._save_picture(filename, images.cubemap_image(img, data_range), None, None)

    def save_img_sequence(
        self,
        filename: str,
        img_dir: str,
        matcher: str,
        save_format: str = "mp4",
        fps: int = 30,
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """A video of the pictures in the folder `img_dir` of the save folder.

        `matcher` is a regular expression; its first group is the frame's number.
        """
        if not filename.endswith(f".{save_format}"):
            filename = f"{filename}.{save_format}"
        frames = video.frames_in(os.path.join(self.get_save_dir(), img_dir), matcher)
        path = self.get_save_path(filename)
        with staged(path) as scratch:
            written = video.write_video(scratch, frames, save_format, fps)
        path = os.path.join(os.path.dirname(path), os.path.basename(written))  # a GIF, where no mp4 can be made
        if name is not None and self._wandb_logger is not None:
            self._wandb_logger.log_video(key=name, videos=[path], step=step)
        return path

    def remove_frames(self, img_dir: str, matcher: str) -> None:
        """Removes what `save_img_sequence` would take for frames, of which an earlier run may have left more."""
        folder = os.path.join(self.get_save_dir(), img_dir)
        for path in video.frame_files(folder, matcher) if os.path.isdir(folder) else []:
            os.remove(path)

    # -------------------------------------------------------------------------------- meshes

    def save_mesh(
        self,
        filename: str,
        v_pos: Any,  # [V, 3]
        t_pos_idx: Any,  # [F, 3]
        v_tex: Any = None,  # [V, 2]
        t_tex_idx: Any = None,  # [F, 3]
    ) -> str:
        """Writes geometry alone, in the format that the file's ending names."""
        import trimesh

        mesh = trimesh.Trimesh(images.to_numpy(v_pos), images.to_numpy(t_pos_idx), process=False)
        return self.save_written(filename, mesh.export)[0]

    def save_obj(
        self,
        filename: str,
        mesh: Any,  # threestudio.models.mesh.Mesh
        save_mat: bool = False,
        save_normal: bool = False,
        save_uv: bool = False,
        save_vertex_color: bool = False,
        map_Kd: Any = None,  # [H, W, 3]
        map_Ks: Any = None,  # [H, W, 3]
        map_Bump: Any = None,  # [H, W, 3]
        map_Pm: Any = None,  # [H, W, 1]
        map_Pr: Any = None,  # [H, W, 1]
        map_format: str = "jpg",
    ) -> list[str]:
        """Writes an OBJ, and with `save_mat` its MTL and textures; returns all paths."""
        path = self.get_save_path(_with_ending(filename, ".obj"))
        arrays = _arrays_of(mesh, save_normal, save_uv, save_vertex_color)
        with staged(path) as scratch:
            written, mtllib = [], None
            if save_mat:
                material_path = os.path.splitext(scratch)[0] + ".mtl"
                maps = dict(map_Kd=map_Kd, map_Ks=map_Ks, map_Bump=map_Bump, map_Pm=map_Pm, map_Pr=map_Pr)
                written = mesh_files.write_material(material_path, "default", maps, map_format)
                mtllib = os.path.basename(material_path)
            text = mesh_files.obj_text(**arrays, mtllib=mtllib, material="default" if save_mat else None)
            mesh_files.write_text(scratch, text)
        folder = os.path.dirname(path)
        return [path, *(os.path.join(folder, os.path.basename(name)) for name in written)]

    def save_glb(
        self,
        filename: str,
        mesh: Any,  # threestudio.models.mesh.Mesh
        save_normal: bool = False,
        save_uv: bool = False,
        save_vertex_color: bool = False,
        map_Kd: Any = None,  # [H, W, 3]
        map_Pm: Any = None,  # [H, W, 1]
        map_Pr: Any = None,  # [H, W, 1]
        map_Bump: Any = None,  # [H, W, 3], tangent space, +y up
        v_tng: Any = None,  # [Nt, 4], tangents by texture coordinate that map_Bump refers to
    ) -> list[str]:
        """Writes a GLB with vertex colours, or with `save_uv` and `map_Kd` textures."""
        arrays = _arrays_of(mesh, save_normal, save_uv, save_vertex_color)
        maps = {"base_color": map_Kd, "metallic": map_Pm, "roughness": map_Pr, "normal_map": map_Bump, "v_tng": v_tng}
        write = partial(glb_files.write_glb, **arrays, **images.to_numpy(maps))
        return self.save_written(_with_ending(filename, ".glb"), write)

    def save_ply(
        self, filename: str, mesh: Any, save_normal: bool = False, save_vertex_color: bool = False
    ) -> list[str]:
        """Writes a threestudio.models.mesh.Mesh as binary PLY."""
        write = partial(mesh_files.write_ply, **_plain_arrays_of(mesh, save_normal, save_vertex_color))
        return self.save_written(_with_ending(filename, ".ply"), write)

    def save_stl(self, filename: str, mesh: Any) -> list[str]:
        """Writes a threestudio.models.mesh.Mesh as binary STL."""
        arrays = images.to_numpy({"v_pos": mesh.v_pos, "t_pos_idx": mesh.t_pos_idx})
        return self.save_written(_with_ending(filename, ".stl"), partial(mesh_files.write_stl, **arrays))

    def save_written(self, filename: str, write: Callable[[str], Any]) -> list[str]:
        """For what writes itself: `write(path)` is called; the file appears when it is whole."""
        path = self.get_save_path(filename)
        with staged(path) as scratch:
            write(scratch)
        return [path]

    # ---------------------------------------------------------------------------------- data

    def save_data(self, filename: str, data: Any) -> str:
        """Arrays: one as .npy, a dict of them as .npz."""
        data = images.to_numpy(data)
        ending = ".npz" if isinstance(data, dict) else ".npy"
        if not filename.endswith(ending):
            filename += ending
        if isinstance(data, dict):
            return self.save_written(filename, lambda path: np.savez(path, **data))[0]
        return self.save_written(filename, lambda path: np.save(path, data))[0]

    def save_state_dict(self, filename: str, data: Any) -> str:
        return self.save_written(filename, lambda path: torch.save(data, path))[0]

    def save_file(self, filename: str, src_path: str) -> str:
        return self.save_written(filename, lambda path: shutil.copyfile(src_path, path))[0]

    def save_json(self, filename: str, payload: Any) -> str:
        text = json.dumps(payload, indent=2, ensure_ascii=False)
        return self.save_written(filename, lambda path: mesh_files.write_text(path, text + "\n"))[0]


def describe_files(written: Any, summary: str) -> list[str]:
    """A line for each file that a saving function gave the path of: path, size and, for the first, what is in it."""
    paths = [written] if isinstance(written, str) else list(written or [])
    sizes = [f"{path}: {os.path.getsize(path) / 1e6:.2f} MB" for path in paths]
    return [f"{sizes[0]}, {summary}" if summary else sizes[0], *sizes[1:]] if sizes else []


def _with_ending(filename: str, ending: str) -> str:
    return filename if filename.endswith(ending) else filename + ending


def _plain_arrays_of(mesh: Any, normals: bool, colors: bool) -> dict[str, Any]:
    return images.to_numpy(
        {
            "v_pos": mesh.v_pos,
            "t_pos_idx": mesh.t_pos_idx,
            "v_nrm": mesh.v_nrm if normals else None,
            "v_rgb": mesh.v_rgb if colors else None,
        }
    )


def _arrays_of(mesh: Any, normals: bool, uv: bool, colors: bool) -> dict[str, Any]:
    coordinates = {"v_tex": mesh.v_tex, "t_tex_idx": mesh.t_tex_idx} if uv else {"v_tex": None, "t_tex_idx": None}
    return {**_plain_arrays_of(mesh, normals, colors), **images.to_numpy(coordinates)}
