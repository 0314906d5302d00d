from . import base, implicit_sdf, implicit_volume, tetrahedra_sdf_grid
