from . import base, implicit_volume
