"""A guidance of pictures with a loss that is NaN at one step, and the key that chooses it."""

from turboprop.fitting.guidance import PicturesGuidance

import threestudio

NAN_GUIDANCE = "system.guidance_type=test-nan-pictures-guidance"
NAN_STEP = 9


@threestudio.register("test-nan-pictures-guidance")
class NanPicturesGuidance(PicturesGuidance):
    """The loss of one step is NaN, whatever the state."""

    def update_step(self, epoch, global_step, on_load_weights=False):
        self.factor = float("nan") if global_step == NAN_STEP else 1.0

    def __call__(self, rgb, *args, **kwargs):
        return super().__call__(rgb * self.factor, *args, **kwargs)
