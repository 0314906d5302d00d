"""What systems share whose scene has the channels of a diffusion model's latents in place of colours."""

from typing import Any

from threestudio.systems.score_distillation import ScoreDistillationSystem
from threestudio.systems.views import view_cells


class LatentSceneSystem(ScoreDistillationSystem):
    """Renders latents; its pictures are what the guidance's model decodes them to."""

    view_names = ("decoded_rgb", "comp_normal", "opacity")

    def configure(self) -> None:
        self.guidance: Any = None  # built when a step or a picture needs it
        super().configure()

    def decode(self, out: dict) -> dict:
        """The render with `decoded_rgb` [B, H, W, 3] in [0, 1]."""
        if self.guidance is None:
            self.build_guidance()
        size = self.decoded_latent_size()
        images = self.guidance.decode_latents(
            out["comp_rgb"].permute(0, 3, 1, 2), latent_height=size, latent_width=size
        )
        return {**out, "decoded_rgb": images.permute(0, 2, 3, 1)}

    def decoded_latent_size(self) -> Any:
        """The side of the latents that are decoded; None is the model's own."""
        return None

    def evaluation_views(self, batch: dict) -> list[dict]:
        return view_cells(self.decode(self(batch)), self.view_names)
