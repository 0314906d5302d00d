from . import base, nerf_volume_renderer
