"""Which components are in memory, how do they become a pipeline, and how does it run?

Promises: each job gets a new diffusers pipeline, and a job leaves nothing on the shared weights;
the same seed gives the same bytes, whatever ran before; torch is imported only inside functions.
Not covered: the choice of layout and speedups (planning).
"""
