"""Where are the weights, are they whole, and who downloads them?

Promises: only safetensors are opened; a component appears all at once, with its manifest, or not
at all; the disk holds one copy of each component; a running job downloads nothing but the LoRAs
that it asks for.
Not covered: loading weights into memory (pipelines.load).
"""
