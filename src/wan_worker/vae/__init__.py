"""How do frames become latents, and latents become frames?

Both work on one frame at a time.
Promises: the result equals diffusers' own VAE, in a fraction of its memory; memory does not grow
with the clip's length.
Not covered: which frames a job conditions on (pipelines.conditioning), encoding a file (media).
"""
