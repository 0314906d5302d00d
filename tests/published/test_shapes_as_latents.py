"""What Fantasia3D and SJC hand to a model that knows latents."""

from types import SimpleNamespace

import torch

import threestudio

Fantasia3D, ScoreJacobianChaining = threestudio.find("fantasia3d-system"), threestudio.find("sjc-system")


def asked(step: int) -> tuple[torch.Tensor, dict]:
    """What a shape stage of 10 latent steps shows its guidance of one pixel, and how."""
    seen = []
    stage = SimpleNamespace(
        true_global_step=step,
        cfg=SimpleNamespace(latent_steps=10),
        guide=lambda images, batch, **options: seen.append((images, options)) or {},
    )
    normal, opacity = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 1, 3), torch.full((1, 1, 1, 1), 0.25)
    Fantasia3D._guide_shape(stage, {"comp_normal": normal, "opacity": opacity}, {})
    return seen[0]


def test_normals_in_their_own_range_and_the_mask_are_fantasia3ds_latents():
    """Section 3.1 and threestudio's system: normals of [0, 1] as [-1, 1], the mask as it is; pictures later."""
    latents, how = asked(9)
    assert latents.flatten().tolist() == [-1.0, 0.0, 1.0, 0.25] and how == {"as_latents": True}
    pictures, how = asked(10)
    assert pictures.flatten().tolist() == [0.0, 0.5, 1.0] and how == {}


def test_sjc_decodes_latents_of_twice_the_models_size():
    """Its subpixel rendering: 128 x 128 latents of a model of 64 x 64."""
    guidance = SimpleNamespace(latent_size=64)
    for subpixel, expected in ((True, 128), (False, None)):
        scene = SimpleNamespace(cfg=SimpleNamespace(subpixel_rendering=subpixel), guidance=guidance)
        assert ScoreJacobianChaining.decoded_latent_size(scene) == expected
