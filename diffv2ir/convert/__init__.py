"""Checkpoints of others to bundles: CompVis/Lightning files and diffusers folders of Stable Diffusion 1.x."""
