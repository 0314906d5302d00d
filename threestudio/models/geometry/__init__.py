from . import base, custom_mesh, implicit_sdf, implicit_volume, tetrahedra_sdf_grid, volume_grid
