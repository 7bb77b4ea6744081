"""Which parts are in memory, how are they put together, and how do they run?

Promises: a diffusers pipeline is put together anew for each job, and nothing of a job is left on
shared weights; the same seed gives the same bytes, whatever ran before; torch is imported inside
functions only.
Not covered: which layout, which speedups (planning).
"""
