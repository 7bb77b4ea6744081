"""How do untrusted URLs and bytes become safe pictures?

Promises: the worker connects only to public addresses and checks each redirect; every wait ends at
one deadline; only PNG, JPEG and WebP decoders read the bytes; sizes are checked before a pixel is
decoded.
Not covered: stores that a caller names (delivery.caller_store), LoRA files (weights.lora_files).
"""
