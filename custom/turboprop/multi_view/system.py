"""`mvdream-system`: one scene for one prompt, taught by a multi-view model."""

import threestudio

from .eikonal import WithEikonal


@threestudio.register("mvdream-system")
class MVDreamSystem(WithEikonal, threestudio.find("dreamfusion-system")):
    """DreamFusion's step; that views come in sets is the data's and the guidance's affair."""
