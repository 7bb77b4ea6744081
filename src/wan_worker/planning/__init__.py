"""Which model, laid out how in memory, doing what, and why?

Promises: pure functions; the plan is finished before anything is downloaded or the GPU is
touched; every choice carries its reason; a model that was named is never swapped.
Not covered: how long it takes (timing), carrying it out (pipelines).
"""
