"""What is this machine, and what was measured on it?

Promises: detecting the machine does not import torch; before each job the worker asks again how
much GPU memory other processes hold; during a job no choice depends on the clock.
Not covered: what a job needs of the machine (planning), and whether a kernel computes the right
result (pipelines.attention).
"""
