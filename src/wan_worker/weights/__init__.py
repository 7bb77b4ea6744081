"""Where are the weights, are they whole, and who brings them?

Promises: only safetensors are opened; a component appears all at once, with its manifest, or not
at all; one copy of each component on disk; nothing is fetched while a job is served, except the
LoRAs that it asks for.
Not covered: bringing weights into memory (pipelines.load).
"""
