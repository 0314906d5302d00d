from . import base, diffuse_with_point_light_material, no_material, sd_latent_adapter_material
