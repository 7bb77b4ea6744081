"""What becomes of the prompt before the video model sees it?

Promises: whatever goes wrong with the language model costs a warning and not the job; the same
request gives the same words; what the text encoder made is kept within a bound of bytes.
Not covered: running the text encoder (pipelines.generate).
"""
