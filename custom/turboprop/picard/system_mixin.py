"""`picard`: trains any system by Picard iterations (rounds.py). `system_type: "dreamfusion-system:picard"`"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from torch import Tensor
from torch.optim import Optimizer

import threestudio

from ..system_mixin import SystemMixin
from .processes.watching import WatchesRanks
from .rounds import PicardRounds
from .settings import picard_config
from .slots import Slot


@threestudio.register("turboprop-picard")
@threestudio.register("picard")
class PicardSystem(SystemMixin):
    """Hands the trainer's hooks on. Its own names begin with `picard`, and so meet none of the system's."""

    config_group = "picard"
    processes_step_together = True
    picard_slot: Optional[Slot] = None  # while a step is computed ahead of the trainer

    def configure(self) -> None:
        self.picard_rounds = PicardRounds(picard_config(self.cfg.picard), self, super())
        super().configure()

    def configure_callbacks(self) -> List[Any]:
        return [*super().configure_callbacks(), WatchesRanks(self.picard_rounds.config.dead_after), self.picard_rounds]

    def on_train_start(self) -> None:
        super().on_train_start()
        self.picard_rounds.start()

    def state_dict(self, *args: Any, **kwargs: Any) -> Dict[str, Any]:
        """All ranks must ask for it together, as they do for a checkpoint."""
        self.picard_rounds.gather()
        return super().state_dict(*args, **kwargs)

    def on_validation_model_eval(self) -> None:
        self.picard_rounds.gather_parameters()
        super().on_validation_model_eval()

    def on_save_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.picard_rounds.save(checkpoint)

    def on_load_checkpoint(self, checkpoint: Dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.picard_rounds.load(checkpoint)

    @property
    def global_step(self) -> int:
        return super().global_step if self.picard_slot is None else self.picard_slot.step

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        (super() if self.picard_slot is None else self.picard_slot).log(name, value, *args, **kwargs)

    def on_train_batch_start(self, batch: Any, batch_idx: int, *args: Any) -> Any:
        return self.picard_rounds.begin_step(batch, batch_idx, *args)

    def training_step(self, batch: Any, batch_idx: int) -> Dict[str, Tensor]:
        return self.picard_rounds.serve_step()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.picard_rounds.serve_gradients()

    def on_after_backward(self) -> None:
        self.picard_rounds.serve_buffers()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.picard_rounds.finish_step()
