"""`mvdream-system`: one scene for one prompt, taught by a multi-view model."""

import threestudio


@threestudio.register("mvdream-system")
class MVDreamSystem(threestudio.find("dreamfusion-system")):
    """DreamFusion's step; that views come in sets is the data's and the guidance's affair."""
