from . import base, nerf_volume_renderer, neus_volume_renderer, nvdiff_rasterizer, patch_renderer
