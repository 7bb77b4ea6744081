"""What is this machine, and what was measured on it?

Promises: asking costs no import of torch; what others hold of the GPU is asked anew for each job;
nothing is chosen by the clock during a job.
Not covered: what a job needs of it (planning), and whether a kernel computes the right thing
(pipelines.attention).
"""
