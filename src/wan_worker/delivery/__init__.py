"""Where do files go, what is the answer, and who gets the callback?

Promises: an upload that failed is never reported; the manifest is written last; files finished
before a failure are kept; a callback never changes a job's outcome.
Not covered: which error means what (errors, faults).
"""
