"""Self-distillation without labels: what a small DINO encoder learns from. Pure functions, and the projection head.

Caron et al. 2021, "Emerging properties in self-supervised vision transformers" (DINO, arXiv 2104.14294); Zhou et al.
2022, "iBOT" (arXiv 2111.07832); Oquab et al. 2023, "DINOv2" (arXiv 2304.07193).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STUDENT_TEMPERATURE = 0.1  # DINO, section 3.2
SINKHORN_ROUNDS = 3  # SwAV (Caron et al. 2020, arXiv 2006.09882), section 3


class PrototypeHead(nn.Module):
    """Vectors to scores of prototypes: an MLP to a short unit vector, then cosines (DINO, section 3.2 and appendix C).

    The short vectors are standardised over the batch before they get unit length. So scores differ from the first step
    on; without it they start nearly equal for all pictures, and a short training sees hardly any target.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        self.standardise = nn.BatchNorm1d(bottleneck, affine=False, track_running_stats=False)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, vectors: Tensor) -> Tensor:  # [N, width] -> [N, prototypes], in [-1, 1]
        short = F.normalize(self.standardise(self.layers(vectors)), dim=-1)
        return F.linear(short, F.normalize(self.prototypes.weight, dim=-1))


def crops(images: Tensor, scale: tuple[float, float], size: int, generator: torch.Generator) -> Tensor:
    """One square part of each picture [B, C, H, W], of an area drawn within `scale` of the whole: [B, C, size, size].

    Nothing is mirrored: a mirrored object is seen from elsewhere, and what follows must tell from where.
    """
    count = len(images)
    area = scale[0] + (scale[1] - scale[0]) * torch.rand(count, generator=generator)
    side = area.sqrt()  # share of the picture's side
    place = (1.0 - side[:, None]) * (2.0 * torch.rand(count, 2, generator=generator) - 1.0)  # middle, in [-1, 1]
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = side, side, place
    grid = F.affine_grid(affine.to(images), [count, images.shape[1], size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@torch.no_grad()
def balanced_targets(scores: Tensor, temperature: float) -> Tensor:  # [N, K]
    """What the teacher says of N vectors: distributions [N, K] that use all prototypes alike over the batch.

    Sinkhorn and Knopp's normalisation in place of DINO's centre (DINOv2, section 4), so that nothing collapses.
    """
    plan = torch.softmax(scores.float() / temperature, dim=-1)
    count, prototypes = plan.shape
    for _ in range(SINKHORN_ROUNDS):
        plan = plan / plan.sum(0, keepdim=True).clamp_min(1e-12) / prototypes
        plan = plan / plan.sum(1, keepdim=True).clamp_min(1e-12) / count
    return plan * count


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """-sum target log softmax(scores / temperature) of each vector: the student's scores [..., K], targets -> [...]."""
    return -(targets * F.log_softmax(scores.float() / STUDENT_TEMPERATURE, dim=-1)).sum(-1)


def view_loss(student: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over all pairs of a student's crop and a teacher's other crop (DINO, equation 3): [].

    student [S, B, K]: scores of S crops, those that the teacher saw too first; targets [T, B, K], T <= S.
    """
    losses = [
        cross_entropy(student[s], targets[t]).mean() for t in range(len(targets)) for s in range(len(student)) if s != t
    ]
    return torch.stack(losses).mean()


def random_masks(count: int, patches: int, share: float, generator: torch.Generator) -> Tensor:
    """Which patches are hidden: bool [count, patches], the same number in each, in half of the rows none at all.

    iBOT, appendix E: no patch is hidden in half of the pictures.
    """
    hidden = round(share * patches)
    order = torch.rand(count, patches, generator=generator).argsort(1)
    masks = order < hidden
    masks[torch.rand(count, generator=generator) < 0.5] = False
    return masks


def patch_loss(student: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
    """The mean cross-entropy of hidden patches (iBOT, equation 2): student, targets [M, K] of the M patches in `masks`.

    Each picture that has hidden patches counts the same. masks bool [B, P] with M true -> [].
    """
    each = cross_entropy(student, targets)  # [M]
    hidden = masks.sum(1, keepdim=True).clamp_min(1).expand_as(masks)[masks]  # [M], of the patch's own picture
    pictures = masks.any(1).sum().clamp_min(1)
    return (each / hidden).sum() / pictures


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Moves the teacher's weights towards the student's (DINO, section 3.1)."""
    for own, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        own.lerp_(theirs.to(own), 1.0 - momentum)
