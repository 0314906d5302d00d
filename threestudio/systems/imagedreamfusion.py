"""A scene from one picture and a prompt: DreamFusion (Poole et al. 2022) that also has to look like the picture."""

import threestudio
from threestudio.systems.image_reference import ImageReferenceSystem


@threestudio.register("image-condition-dreamfusion-system")
class ImageConditionDreamFusion(ImageReferenceSystem):
    def training_step(self, batch: dict, batch_idx: int) -> dict:
        losses = {}
        if self.true_global_step > self.cfg.freq.get("ref_only_steps", 0):
            losses = self.guided_losses(batch)
        return self.weighted_sum({**losses, **self.reference_losses(batch)})
