"""A background whose parameter changes after each step."""

import torch

import threestudio
from threestudio.models.background.solid_color_background import SolidColorBackground


@threestudio.register("test-pulled-background")
class PulledBackground(SolidColorBackground):
    """Looks at its parameter after each step, and changes it."""

    def update_step_end(self, epoch, global_step):
        with torch.no_grad():
            self.env_color.mul_(0.9)
