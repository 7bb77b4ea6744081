"""Which jobs wait, which process runs them, and what happens if that process dies?

Promises: an accepted job is never lost: queued jobs keep their place over a restart, and each job
ends once; the server's process never imports torch.
Not covered: what a job does (job), HTTP (server).
"""
