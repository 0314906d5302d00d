"""What multi-view teachers ask of a training: cameras in sets, threestudio-mvdream's data module and system."""
