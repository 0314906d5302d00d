"""How good generated objects are: CLIP retrieval by a judge, and measures against the world's exact objects."""
