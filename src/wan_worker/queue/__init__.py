"""Which jobs wait, who works them off, and what if that process dies?

Promises: a job that was accepted is never lost: queued jobs keep their place over a restart, and
each ends once; the server's process never imports torch.
Not covered: what a job does (job), HTTP (server).
"""
