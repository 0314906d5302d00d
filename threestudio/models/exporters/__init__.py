from . import base, mesh_exporter
