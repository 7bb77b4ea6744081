"""What is this machine, and what was measured on it?

Promises: a look at the machine does not import torch; what others hold of the GPU is asked anew for
each job; during a job no choice depends on the clock.
Not covered: what a job needs of the machine (planning), and whether a kernel computes the right
result (pipelines.attention).
"""
