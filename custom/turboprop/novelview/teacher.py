"""A novel-view diffusion model as a teacher: its condition is a picture and the camera from which to see the object."""

from typing import Any

import torch
from torch import Tensor

from ..teachers.autoencoder import LatentTeacher
from .camera_pose import relative_pose
from .condition import NovelViewCondition
from .loading import load_novel_view_model
from .model import EncodedView, NovelViewModel, square_image

__all__ = ["NovelViewCondition", "NovelViewTeacher"]


class NovelViewTeacher(LatentTeacher[NovelViewCondition]):
    """zero123, zero123-xl, stable-zero123, or a model trained here.

    Args:
        model: the model; it is frozen.
    """

    def __init__(self, model: NovelViewModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.alphas_cumprod = model.alphas_cumprod
        self.latent_channels = model.latent_channels
        self.latent_size, self.image_size = model.latent_size, model.image_size
        self._last_view: tuple[Tensor, int, EncodedView] | None = None  # picture, its version, what came of it

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,  # a folder or hub id in one of the known layouts, or a .ckpt file
        device: torch.device | str = "cpu",
        half_precision_weights: bool = False,  # float16 weights and compute; on a CPU always float32
        fourth_number: str | None = None,  # see camera_pose; None: as the folder says, else zero123's
    ) -> "NovelViewTeacher":
        """Loads a teacher; see `loading.load_novel_view_model` for the layouts.

        Foreign files do not say what the fourth number is: it goes by their names (`loading.fourth_number_of`). Raises
        as `loading.load_novel_view_model`.
        """
        device = torch.device(device)
        half = half_precision_weights and device.type != "cpu"
        model = load_novel_view_model(pretrained_model_name_or_path, fourth_number=fourth_number)
        return cls(model.cast(torch.float16 if half else torch.float32).to(device))

    @property
    def vae(self) -> Any:
        return self.model.vae

    @torch.no_grad()
    def predict_noise(self, noisy: Tensor, timesteps: Tensor, condition: NovelViewCondition) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            return self.model.predict_noise(noisy, timesteps, condition)

    @torch.no_grad()
    def encode_view(self, image: Tensor) -> EncodedView:  # [B, 3, H, W] in [0, 1]
        """What the model's frozen parts say about input views; pictures are resized to the model's size. Raises
        ValueError for pictures that are not square."""
        return self.model.encode_view(square_image(image.to(self.device, torch.float32), self.image_size))

    @torch.no_grad()
    def condition(
        self,
        image: Tensor,  # [1, 3, H, W] in [0, 1]; or one for each of B samples
        cond_elevation_deg: Tensor | float,  # degrees, of the input view: a number, or [B]
        cond_azimuth_deg: Tensor | float,
        cond_camera_distance: Tensor | float,  # in the model's unit; zero-1-to-3's training has 1.5 to 2.2
        elevation: Tensor,  # [B] degrees, of the views to draw
        azimuth: Tensor,  # [B] degrees
        camera_distances: Tensor,  # [B]
    ) -> NovelViewCondition:
        """The condition of B views of the object in `image`.

        The picture is encoded once as long as the same tensor is given, unchanged. Raises ValueError for pictures that
        are not square, or of another number than 1 or B.
        """
        view = self._encoded_once(image).expanded(len(elevation))
        cond_camera = (cond_elevation_deg, cond_azimuth_deg, cond_camera_distance)
        return self.condition_of_view(view, *cond_camera, elevation, azimuth, camera_distances)

    @torch.no_grad()
    def condition_of_view(
        self,
        view: EncodedView,  # of B input views, see `encode_view`
        cond_elevation_deg: Tensor | float,  # degrees: a number, or [B]
        cond_azimuth_deg: Tensor | float,
        cond_camera_distance: Tensor | float,
        elevation: Tensor,  # [B] degrees
        azimuth: Tensor,  # [B] degrees
        camera_distances: Tensor,  # [B]
    ) -> NovelViewCondition:
        """What `condition` gives, from input views that were encoded before."""
        given = (elevation, azimuth, camera_distances, cond_elevation_deg, cond_azimuth_deg, cond_camera_distance)
        numbers = (torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in given)
        return self.model.condition(view, relative_pose(*numbers, self.model.settings.fourth_number))

    def unconditional(self, condition: NovelViewCondition) -> NovelViewCondition:
        """The null condition in place of each of its samples."""
        return condition.without_image()

    def _encoded_once(self, image: Tensor) -> EncodedView:
        if self._last_view is not None and self._last_view[0] is image and self._last_view[1] == image._version:
            return self._last_view[2]
        encoded = self.encode_view(image)
        self._last_view = (image, image._version, encoded)
        return encoded
