"""What becomes of the prompt before the video model sees it?

Promises: a failure of the language model costs a warning, not the job; the same request gives the
same words; the kept embeddings stay within a bound of bytes.
Not covered: running the text encoder (pipelines.generate).
"""
