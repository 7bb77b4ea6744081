"""Is the input right, and what does it ask for?

Promises: an untrusted job becomes one frozen ``Request``, or an ``InvalidRequest`` that names the
JSON pointer and the rule; a value is never repeated, because it could be a secret; nothing is
fetched.
Not covered: what the job will do (planning), and pictures (inputs).
"""
