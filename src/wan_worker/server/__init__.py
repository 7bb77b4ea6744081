"""Who may use the HTTP API, and which route answers what?

Promises: access is decided before a body is read; every refusal has the same form; the page
fetches nothing from another host.
Not covered: running the jobs (queue).
"""
