"""Image grids, videos and meshes of a generator, and the latents and cameras that they show."""
