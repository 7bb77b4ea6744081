"""Where do files go, what is answered, and who is told?

Promises: an upload that did not happen is never reported; the manifest is written last; what was
finished before a failure is kept; a callback never changes a job's outcome.
Not covered: which error means what (errors, faults).
"""
