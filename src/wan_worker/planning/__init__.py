"""Which model runs, how is it laid out in memory, what does it do, and why?

Promises: pure functions; the plan is finished before anything is downloaded or the GPU is used;
every choice carries its reason; a model that the request names is never swapped.
Not covered: how long it takes (timing), carrying it out (pipelines).
"""
