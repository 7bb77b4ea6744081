"""What does the worker answer about its models, its past jobs and itself?

Promises: an answer uses only what is already known: it fetches and loads nothing, and does not
wait for the GPU.
Not covered: the HTTP routes that ask (server).
"""
