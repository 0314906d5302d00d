"""Multi-view diffusion teachers: MVDream's network, its cameras, its weights, and the teacher made of them."""
