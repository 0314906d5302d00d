"""Novel views of an object from one picture: the model, its training, its files and its use as a teacher."""

from . import (
    automatic_caption,
    automatic_elevation,
    automatic_place,
    data,
    guidance,
    picture_data,
    system,
    unified_guidance,
    variational_guidance,
)
