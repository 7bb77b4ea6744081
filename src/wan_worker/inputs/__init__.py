"""How do untrusted URLs and bytes become safe pictures?

Promises: only public addresses are dialled, checked at each redirect; every wait ends at one
deadline; only PNG, JPEG and WebP decoders see the bytes, and sizes are checked before a pixel is
decoded.
Not covered: stores that a caller names (delivery.caller_store), LoRA files (weights.lora_files).
"""
