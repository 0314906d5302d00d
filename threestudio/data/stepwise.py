"""The loaders that data modules of cameras share."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader


class StepwiseDataModule(pl.LightningDataModule):
    """Whole batches of the `train_dataset` that `setup` makes, and single items of `val_dataset` and `test_dataset`.

    Each dataset makes its batch by its `collate`. Exporting looks at the test items.
    """

    train_dataset: Any
    val_dataset: Any
    test_dataset: Any

    def general_loader(self, dataset: Any, batch_size: int | None, collate_fn: Any = None) -> DataLoader:
        return DataLoader(dataset, num_workers=0, batch_size=batch_size, collate_fn=collate_fn)

    def train_dataloader(self) -> DataLoader:
        return self.general_loader(self.train_dataset, batch_size=None, collate_fn=self.train_dataset.collate)

    def val_dataloader(self) -> DataLoader:
        return self.general_loader(self.val_dataset, batch_size=1, collate_fn=self.val_dataset.collate)

    def test_dataloader(self) -> DataLoader:
        return self.general_loader(self.test_dataset, batch_size=1, collate_fn=self.test_dataset.collate)

    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()
