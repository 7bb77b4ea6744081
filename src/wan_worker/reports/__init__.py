"""What is asked about models, about the past, and about the worker itself?

Promises: answers come from what is known already: nothing is fetched or loaded, and the GPU is
not waited for.
Not covered: the routes that ask (server).
"""
